import { html, render } from "../shared/view.js";
import { App } from "./app.js";

const place = document.getElementById("app");
place.replaceChildren();
render(html`<${App} />`, place);
