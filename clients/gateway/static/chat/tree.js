// A chat is a tree of messages: an edit or another answer is a sibling, and `head` is the end of the branch that is shown.
// Pure: chats and messages are never changed, only replaced. Two tabs that wrote to one chat are merged by union.
//
// chat: {id, title, created, updated, settings, nodes: {id: node}, head}
// node: {id, parent, role, text, at, ...}; an answer also has {thoughts, model, done, error, stats, chain, seen}

import { noChain } from "./chain.js";

export const newId = () => crypto.randomUUID();

export function newChat(settings, now = Date.now()) {
  return { id: newId(), title: "", created: now, updated: now, settings, nodes: {}, head: null };
}

// The messages from the first to the head.
export function branch(chat, end = chat.head) {
  const found = [];
  for (let node = chat.nodes[end]; node && found.length < 10_000; node = chat.nodes[node.parent]) found.push(node);
  return found.reverse();
}

export function siblings(chat, node) {
  const same = Object.values(chat.nodes).filter((other) => other.parent === node.parent && other.role === node.role);
  return same.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
}

// The end of the newest branch that goes through `id`.
export function tip(chat, id) {
  for (let end = id; ; ) {
    const children = Object.values(chat.nodes).filter((node) => node.parent === end);
    if (!children.length) return end;
    end = children.reduce((a, b) => (b.at >= a.at ? b : a)).id;
  }
}

export function withNode(chat, node, now = Date.now()) {
  return { ...chat, nodes: { ...chat.nodes, [node.id]: node }, updated: now };
}

export function merge(ours, stored) {
  if (!stored) return ours;
  const nodes = { ...stored.nodes };
  for (const node of Object.values(ours.nodes)) nodes[node.id] = fuller(node, nodes[node.id]);
  return { ...(stored.updated > ours.updated ? stored : ours), nodes, head: ours.head };
}

function fuller(a, b) {
  if (!b) return a;
  if (Boolean(a.done) !== Boolean(b.done)) return a.done ? a : b;
  return (b.text?.length ?? 0) > (a.text?.length ?? 0) ? b : a;
}

// A chat as it came out of storage, or null where it isn't one: other scripts of this origin may have written anything.
export function checked(raw) {
  if (typeof raw?.id !== "string" || typeof raw.nodes !== "object" || raw.nodes === null) return null;
  const nodes = {};
  for (const [id, node] of Object.entries(raw.nodes)) {
    if (node?.id === id && ["user", "assistant"].includes(node.role) && typeof node.text === "string") nodes[id] = whole(node);
  }
  return {
    id: raw.id,
    title: typeof raw.title === "string" ? raw.title : "",
    created: Number(raw.created) || 0,
    updated: Number(raw.updated) || 0,
    settings: typeof raw.settings === "object" && raw.settings !== null ? raw.settings : {},
    nodes,
    head: raw.head in nodes ? raw.head : null,
  };
}

function whole(node) {
  if (node.role === "user") return { parent: null, at: 0, ...node };
  const chain = Array.isArray(node.chain?.hops) && Array.isArray(node.chain.moments) ? node.chain : noChain;
  return { parent: null, at: 0, thoughts: "", done: "stop", error: null, stats: null, seen: 0, ...node, chain };
}

export const titleOf = (chat) => chat.title || firstWords(chat) || "New chat";

function firstWords(chat) {
  const first = Object.values(chat.nodes).find((node) => node.parent === null);
  const words = (first?.text ?? "").replace(/\s+/g, " ").trim();
  return words.length > 48 ? `${words.slice(0, 48).replace(/ \S*$/, "")}…` : words;
}
