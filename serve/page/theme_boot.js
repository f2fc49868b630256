// A classic script in <head>: it sets the theme before the first paint, so that the page never flashes in the other one.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("jaxdeploy.theme");
  } catch {
    // Storage may be switched off; then the system's theme it is.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
