// The switch between light and dark; what was chosen holds for both pages and all tabs.
import { html, useEffect, useState } from "./view.js";
import { Icon } from "./icons.js";

const KEY = "swarm.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

const shown = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");

function show(theme) {
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

export function ThemeSwitch() {
  const [theme, setTheme] = useState(shown());
  useEffect(() => {
    const stored = (event) => {
      if (event.key === KEY) show(event.newValue);
      setTheme(shown());
    };
    addEventListener("storage", stored);
    dark.addEventListener("change", stored);
    return () => {
      removeEventListener("storage", stored);
      dark.removeEventListener("change", stored);
    };
  }, []);
  const other = theme === "dark" ? "light" : "dark";
  const turn = () => {
    show(other);
    setTheme(other);
    try {
      localStorage.setItem(KEY, other);
    } catch {
      // it holds for this page only
    }
  };
  const label = `Use ${other} colours`;
  return html`<button type="button" class="quiet square" aria-label=${label} title=${label} onClick=${turn}>
    <${Icon} name=${theme === "dark" ? "sun" : "moon"} />
  </button>`;
}
