// The chat page as a whole: which chat is shown, what the gateway and the swarm are up to, and the keys.
import { html, useEffect, useMemo, useRef, useState } from "../shared/view.js";
import { Answers } from "./answering.js";
import { apiKey, keepApiKey } from "./api.js";
import { Bar } from "./bar.js";
import { finder } from "./chain.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { KeyDialog, SettingsDialog, ShortcutsDialog } from "./dialogs.js";
import { useGateway, useShortcuts, useSize } from "./hooks.js";
import { Notice } from "./notice.js";
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
  const model = gateway.picture?.models.find((one) => one.names.includes(chat.settings.model));
  useEffect(() => void (document.title = kept ? `${titleOf(kept)} · swarm` : "swarm"), [kept && titleOf(kept)]);

  const open = (next) => {
    setShown(null);
    setDrawer(null);
    if (!next) setBlank(newChat(chats.defaults));
    setId(next ?? "");
    history.pushState(null, "", next ? `#${next}` : location.pathname);
    if (!drawer) box.current?.focus(); // on a phone that would bring up the keyboard
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
  const closeDrawer = () => setDrawer(null);
  useEffect(() => {
    if (drawer) return;
    opener.current?.focus?.(); // only now, since nothing beside an open drawer takes the focus
    opener.current = null;
  }, [drawer]);
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
        <${Bar} title=${kept ? titleOf(kept) : "New chat"} gateway=${gateway} model=${model} settings=${chat.settings} running=${running}
          narrow=${narrow} chainOpen=${chainOpen} onSettings=${keepSettings} onMenu=${() => openDrawer("menu")}
          onDialog=${() => setDialog("settings")} onChain=${toggleChain} />
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
