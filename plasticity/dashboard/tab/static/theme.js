// Dark or light: TensorBoard's own mode, which is a class of the page around this frame; alone, the system's.

import { outerPage } from "./link.js";
import { setTheme } from "./palette.js";

export function followTheme(changed) {
  const outer = outerPage()?.document.body, system = matchMedia("(prefers-color-scheme: dark)");
  const set = () => {
    const theme = (outer ? outer.classList.contains("dark-mode") : system.matches) ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    setTheme(theme);
    changed();
  };
  if (outer) new MutationObserver(set).observe(outer, { attributes: true, attributeFilter: ["class"] });
  else system.addEventListener("change", set);
  set();
}
