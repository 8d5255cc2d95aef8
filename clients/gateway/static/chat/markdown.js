// What a model wrote, made into elements. It is hostile until DOMPurify has been over it: a short list of tags and
// attributes, no images, no classes or ids of ours, links only to the web and by mail, opened apart from this page.
import { Marked } from "../vendor/marked.js";
import DOMPurify from "../vendor/purify.js";
import { html, useLayoutEffect, useMemo, useRef } from "../shared/view.js";
import { highlight } from "./highlight.js";

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    html: ({ text }) => fewTags(text),
    image: ({ text, href }) => escaped(text || href), // a picture elsewhere would tell that place who reads
  },
});

const purify = DOMPurify(window);
const ALLOWED = {
  ALLOWED_TAGS: (
    "a b blockquote br code del details em h1 h2 h3 h4 h5 h6 hr i kbd li mark ol p pre s small span strong sub summary sup " +
    "table tbody td th thead tr u ul"
  ).split(" "),
  ALLOWED_ATTR: ["align", "class", "colspan", "href", "rowspan", "start", "title"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const LANGUAGE = /^language-([\w+#.-]{1,24})$/;

purify.addHook("uponSanitizeAttribute", (element, data) => {
  if (data.attrName === "class") data.keepAttr = element.localName === "code" && LANGUAGE.test(data.attrValue);
  if (data.attrName === "href") data.keepAttr = safeLink(data.attrValue);
});

purify.addHook("afterSanitizeAttributes", (element) => {
  if (element.localName !== "a" || !element.hasAttribute("href")) return;
  element.setAttribute("rel", "noopener noreferrer");
  element.setAttribute("target", "_blank");
});

function safeLink(address) {
  try {
    return ["http:", "https:", "mailto:"].includes(new URL(address).protocol); // a bare path would lead into this page
  } catch {
    return false;
  }
}

// HTML in markdown: tags of simple forms pass, and all else is shown as it was written.
const SIMPLE = /&#60;(\/?(?:b|br|del|details|em|i|kbd|mark|s|small|strong|sub|summary|sup|u))\s*\/?&#62;/gi;
const fewTags = (text) => escaped(text).replace(SIMPLE, "<$1>");

const escaped = (text) => text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);

// --- elements ---

function elements(source) {
  const fragment = purify.sanitize(marked.parse(source), ALLOWED);
  for (const pre of fragment.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre));
  for (const table of fragment.querySelectorAll("table")) table.replaceWith(scroller(table));
  return fragment;
}

function codeBlock(pre) {
  const code = pre.querySelector("code") ?? pre;
  const text = code.textContent.replace(/\n$/, "");
  const language = LANGUAGE.exec(code.className)?.[1] ?? "";
  const block = element("div", "code");
  const head = element("div", "code-head");
  head.append(element("span", "code-language", language), copyButton(text));
  const body = element("pre", "code-body");
  body.tabIndex = 0; // wide code is scrolled by keyboard too
  body.setAttribute("role", "region");
  body.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
  const inner = element("code", "");
  inner.append(...highlight(text, language));
  body.append(inner);
  block.append(head, body);
  return block;
}

function copyButton(text) {
  const button = element("button", "code-copy", "Copy");
  button.type = "button";
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(text)) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  return button;
}

function scroller(table) {
  const box = element("div", "table");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  box.append(table.cloneNode(true));
  return box;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

// --- components ---

// A block is made anew only when its source changes, so a growing answer costs its last block.
function Block({ source }) {
  const place = useRef(null);
  useLayoutEffect(() => place.current.replaceChildren(elements(source)), [source]);
  return html`<div class="block" ref=${place}></div>`;
}

export function Markdown({ text }) {
  const blocks = useMemo(() => split(text), [text]);
  return html`<div class="prose">${blocks.map((source, i) => html`<${Block} key=${i} source=${source} />`)}</div>`;
}

// Top-level blocks. Definitions of links count for the whole text, so a text that has some is one block.
function split(text) {
  const tokens = marked.lexer(text);
  if (Object.keys(tokens.links).length) return [text];
  return tokens.filter((token) => token.type !== "space").map((token) => token.raw);
}
