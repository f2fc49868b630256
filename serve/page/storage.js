/** The browser's storage; where it is switched off or full, the page works on without it. */

const PREFIX = "jaxdeploy.";

export function readStored(storage, key) {
  try {
    return storage.getItem(PREFIX + key);
  } catch {
    return null;
  }
}

export function writeStored(storage, key, value) {
  try {
    storage.setItem(PREFIX + key, value);
  } catch {
    // Nothing is lost but the memory across reloads.
  }
}

export function removeStored(storage, key) {
  try {
    storage.removeItem(PREFIX + key);
  } catch {
    // As above.
  }
}

/** The stored JSON value, or `fallback` when there is none or it can't be read. */
export function readStoredJson(storage, key, fallback) {
  try {
    return JSON.parse(readStored(storage, key)) ?? fallback;
  } catch {
    return fallback;
  }
}
