/** Dark and light: the system's choice until the reader makes one. */

import { readStored, removeStored, writeStored } from "./storage.js";

const KEY = "theme";
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function systemTheme() {
  return systemIsDark.matches ? "dark" : "light";
}

/** Makes `button` switch the theme; choosing what the system says gives the choice back to the system. */
export function setUpThemeButton(button) {
  const show = () => {
    const theme = readStored(localStorage, KEY) ?? systemTheme();
    document.documentElement.dataset.theme = theme;
    const other = theme === "dark" ? "light" : "dark";
    button.setAttribute("aria-label", `Switch to the ${other} theme`);
    button.title = `Switch to the ${other} theme`;
  };
  button.addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    if (next === systemTheme()) removeStored(localStorage, KEY);
    else writeStored(localStorage, KEY, next);
    show();
  });
  systemIsDark.addEventListener("change", show);
  show();
}
