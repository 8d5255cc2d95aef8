// The chat page as a whole: which chat is shown, what the gateway and the swarm are up to, and the keys.
import { html, useEffect, useMemo, useRef, useState } from "../shared/view.js";
import { Icon } from "../shared/icons.js";
import { ready } from "../shared/picture.js";
import { ThemeSwitch } from "../shared/colours.js";
import { Answers } from "./answering.js";
import { apiKey, keepApiKey } from "./api.js";
import { finder } from "./chain.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { KeyDialog, SettingsDialog, ShortcutsDialog } from "./dialogs.js";
import { useGateway, useShortcuts, useSize } from "./hooks.js";
import { Panel } from "./panel.js";
import { Sidebar } from "./sidebar.js";
import { Chats } from "./store.js";
import { branch, newChat, newId, tip, titleOf, withNode } from "./tree.js";

const NARROW = "(max-width: 760px)"; // chats and chain are drawers
const MIDDLE = "(max-width: 1120px)"; // the chain is a drawer

export function App() {
  const chats = useMemo(() => new Chats(), []);
  const gateway = useGateway();
  const names = useRef(() => "");
  names.current = finder(gateway.picture?.models ?? []);
  const answers = useMemo(() => new Answers(chats, (id) => names.current(id)), []);
  const [, redraw] = useState(0);
  const [said, say] = useState("");
  const [blank, setBlank] = useState(() => newChat(chats.defaults));
  const [id, setId] = useState(() => location.hash.slice(1));
  const [shown, setShown] = useState(null); // the answer whose chain is shown; null: the last one
  const [dialog, setDialog] = useState(null);
  const [drawer, setDrawer] = useState(null);
  const [beside, setBeside] = useState(true); // the chain, where there is room beside the chat
  const narrow = useSize(NARROW);
  const middle = useSize(MIDDLE);
  const box = useRef(null);
  const opener = useRef(null);

  useEffect(() => chats.listen(() => redraw((n) => n + 1)), []);
  useEffect(() => {
    answers.onNews = say;
    const moved = () => (setId(location.hash.slice(1)), setShown(null));
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);

  // --- the chat that is shown ---

  const kept = chats.get(id);
  const chat = withModel(kept ?? blank, gateway.models);
  const messages = branch(chat);
  const running = answers.runs(chat.id);
  const answer = messages.find((node) => node.id === shown) ?? messages.findLast((node) => node.role === "assistant");
  const model = gateway.picture?.models.find((one) => one.id === chat.settings.model);
  useEffect(() => void (document.title = kept ? `${titleOf(kept)} · swarm` : "swarm"), [kept && titleOf(kept)]);

  const open = (next) => {
    setShown(null);
    setDrawer(null);
    if (!next) setBlank(newChat(chats.defaults));
    setId(next ?? "");
    history.pushState(null, "", next ? `#${next}` : location.pathname);
    box.current?.focus();
  };

  const begin = async (from, parent) => {
    setShown(null);
    if (from.id !== id) {
      setId(from.id);
      history.replaceState(null, "", `#${from.id}`);
    }
    say("Answering.");
    const done = await answers.begin(from, parent);
    if (done) say(told(done));
    if (done?.error?.status === 401) setDialog("key");
  };

  const send = (text, parent = chat.head) => {
    const node = { id: newId(), parent, role: "user", text, at: Date.now() };
    begin({ ...withNode(chat, node), head: node.id }, node.id);
  };

  const act = {
    send,
    edit: (node, text) => send(text, node.parent),
    again: (node) => begin(chat, node.parent),
    turn: (node) => chats.save({ ...chat, head: tip(chat, node.id) }),
    stop: () => answers.stop(chat.id),
    showChain: (node) => (setShown(node.id), setBeside(true), middle && setDrawer("chain")),
    askKey: () => setDialog("key"),
  };

  const keepSettings = (settings) => {
    chats.keepDefaults(settings);
    if (kept) chats.save({ ...kept, settings, updated: Date.now() });
    else setBlank({ ...blank, settings });
  };

  const keepKey = (key) => {
    keepApiKey(key);
    setDialog(null);
    gateway.refresh();
    const last = messages.at(-1);
    if (last?.error?.status === 401) act.again(last);
  };

  // --- drawers and keys ---

  const openDrawer = (which) => {
    opener.current = document.activeElement;
    setDrawer(which);
  };
  const closeDrawer = () => {
    setDrawer(null);
    opener.current?.focus?.();
  };
  const toggleChain = () => (middle ? (drawer ? closeDrawer() : openDrawer("chain")) : setBeside(!beside));
  const step = (by) => {
    const all = chats.all();
    const next = all[Math.max(0, all.findIndex((one) => one.id === chat.id) + by)];
    if (next) open(next.id);
  };
  useShortcuts({
    Escape: () => (drawer ? closeDrawer() : running && act.stop()),
    "/": () => box.current?.focus(),
    "?": () => setDialog("shortcuts"),
    "alt+KeyN": () => open(null),
    "alt+KeyC": toggleChain,
    "alt+Comma": () => setDialog("settings"),
    "alt+ArrowUp": () => step(-1),
    "alt+ArrowDown": () => step(1),
  });

  const chainOpen = middle ? drawer === "chain" : beside;
  const menuOpen = narrow ? drawer === "menu" : true;
  const overlaid = (narrow || middle) && drawer !== null;
  return html`
    <div class=${`frame ${chainOpen && !middle ? "with-chain" : ""}`}>
      <${Sidebar}
        chats=${chats} current=${chat.id} open=${menuOpen} drawer=${narrow} answers=${answers}
        onOpen=${open} onClose=${closeDrawer} onDialog=${setDialog}
        onRemove=${(gone) => (answers.stop(gone), chats.remove(gone), gone === id && open(null))}
      />
      <main class="main" inert=${overlaid} aria-label="Chat">
        <header class="bar">
          ${narrow && html`<button type="button" class="quiet square" aria-label="Chats" onClick=${() => openDrawer("menu")}><${Icon} name="menu" /></button>`}
          <h1 class="sr-only">${kept ? titleOf(kept) : "New chat"}</h1>
          <${ModelChoice} models=${gateway.models} settings=${chat.settings} onChange=${keepSettings} disabled=${running} />
          <span class="spread"></span>
          <${Pulse} gateway=${gateway} model=${model} />
          <button type="button" class="quiet square" aria-label="Settings of this chat" title="Settings of this chat" onClick=${() => setDialog("settings")}><${Icon} name="sliders" /></button>
          <${ThemeSwitch} />
          <button type="button" class="quiet square" aria-label="The chain of this answer" title="The chain of this answer" aria-expanded=${chainOpen} aria-controls="chain" onClick=${toggleChain}>
            <${ChainGlyph} />
          </button>
        </header>
        <${Conversation} chat=${chat} messages=${messages} running=${running} act=${act} model=${model} gateway=${gateway} />
        <div class="foot">
          <${Notice} gateway=${gateway} model=${model} full=${chats.full} wanted=${chat.settings.model} onKey=${() => setDialog("key")} />
          <${Composer} key=${chat.id} box=${box} running=${running} onSend=${send} onStop=${act.stop} narrow=${narrow}
            last=${messages.findLast((node) => node.role === "user")} />
        </div>
      </main>
      <${Panel} open=${chainOpen} drawer=${middle} answer=${answer} running=${running && !shown} model=${model} onClose=${middle ? closeDrawer : toggleChain} />
      ${overlaid && html`<div class="veil" onClick=${closeDrawer}></div>`}
    </div>
    <div class="sr-only" role="status">${said}</div>
    ${dialog === "settings" && html`<${SettingsDialog} settings=${chat.settings} models=${gateway.models} chat=${kept} onChange=${keepSettings} onKey=${() => setDialog("key")} onClose=${() => setDialog(null)} />`}
    ${dialog === "key" && html`<${KeyDialog} known=${apiKey()} onKeep=${keepKey} onClose=${() => setDialog(null)} />`}
    ${dialog === "shortcuts" && html`<${ShortcutsDialog} onClose=${() => setDialog(null)} />`}
  `;
}

// The chat with a model that is served, where its own isn't or it has none yet.
function withModel(chat, models) {
  if (!models?.length || models.includes(chat.settings.model)) return chat;
  return { ...chat, settings: { ...chat.settings, model: models[0] } };
}

function told(node) {
  if (node.done === "error") return `No answer: ${node.error.message}`;
  const words = node.stats ? `, ${node.stats.tokens} tokens` : "";
  return node.done === "stopped" ? "Stopped." : `The answer is complete${words}.`;
}

function ModelChoice({ models, settings, onChange, disabled }) {
  if (!models?.length) return html`<span class="model-none">${models ? "no model" : "…"}</span>`;
  if (models.length === 1) return html`<span class="model-one">${models[0]}</span>`;
  const pick = (event) => onChange({ ...settings, model: event.target.value });
  return html`
    <span class="model-choice">
      <select class="model" aria-label="Model" value=${settings.model} disabled=${disabled} onChange=${pick}>
        ${models.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
      </select>
      <${Icon} name="chevronLeft" />
    </span>
  `;
}

// How the swarm is, in a dot and a few words; leads to the whole picture.
function Pulse({ gateway, model }) {
  const peers = model?.peers.filter((peer) => peer.state === "online").length;
  const [state, words] = gateway.lost
    ? ["bad", "gateway lost"]
    : !gateway.picture
      ? ["wait", "looking"]
      : model && ready(model)
        ? ["good", `${peers} peer${peers === 1 ? "" : "s"}`]
        : ["bad", "not complete"];
  return html`<a class="pulse" href="/swarm" data-state=${state} aria-label=${`The swarm: ${words}`} title="The whole swarm"><i></i><span>${words}</span></a>`;
}

function Notice({ gateway, model, full, wanted, onKey }) {
  if (gateway.lost) return html`<p class="notice bad" role="alert">The gateway can't be reached. Trying again by itself.</p>`;
  if (gateway.keyWanted)
    return html`<p class="notice" role="alert">This gateway wants an API key. <button type="button" class="link" onClick=${onKey}>Enter it</button></p>`;
  if (full)
    return html`<p class="notice bad" role="alert">This browser's storage is full: what is said now is lost on reload. Export or delete chats to make room.</p>`;
  if (gateway.picture && gateway.models?.length && !(model && ready(model)))
    return html`<p class="notice" role="status"><i class="turning"></i>${lacking(model, wanted)}</p>`;
  return null;
}

function lacking(model, wanted) {
  if (!model?.peers.length) return `No peer serves ${wanted} now. This page goes on by itself when one comes.`;
  const spans = model.missing.map(([start, end]) => `${start}:${end}`).join(", ");
  return `The swarm lacks blocks ${spans} of ${wanted}. This page goes on by itself when a peer brings them.`;
}

const ChainGlyph = () => html`
  <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false">
    <circle cx="10" cy="4.500" r="1.800" /><circle cx="10" cy="10" r="1.800" /><circle cx="10" cy="15.500" r="1.800" />
    <path d="M10 6.300v1.900m0 3.600v1.900" />
  </svg>
`;
