import { html, render } from "../shared/view.js";
import { Page } from "./page.js";

const place = document.getElementById("app");
place.replaceChildren();
render(html`<${Page} />`, place);
