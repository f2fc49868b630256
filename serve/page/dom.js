/** Building DOM nodes. Text only ever enters as text nodes: no function here takes HTML. */

/**
 * A new element. `attributes`: a function is an event listener under its event's name (`{click: f}`), `true` is an
 * empty attribute, `false`, `null` and `undefined` are left out. `children`: nodes and strings.
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A new SVG element with `attributes`. */
export function svgElement(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Copies `text`; says whether it did. The old way serves pages that came over plain HTTP, where the new one is absent. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused (no permission, no focus): try the old way.
    }
  }
  const focused = document.activeElement;
  const area = element("textarea", { class: "offscreen", readonly: true, "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** A button that copies what `read()` returns and says so for a moment. */
export function copyButton(read, label = "Copy") {
  const button = element("button", { type: "button", class: "quiet" }, label);
  button.addEventListener("click", async () => {
    const done = await copyText(read());
    button.textContent = done ? "Copied" : "Could not copy";
    setTimeout(() => (button.textContent = label), 1600);
  });
  return button;
}
