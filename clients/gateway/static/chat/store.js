// The chats of this browser, in its local storage, a key each, so that tabs which write to different chats never meet.
// Nothing is dropped to make room: a full storage is said, and the chat lives on in this page.
import { checked, merge } from "./tree.js";

const PREFIX = "swarm.chat.";
const DEFAULTS = "swarm.settings";
const FIRST = { temperature: 0.7 }; // what chats begin with until something else is chosen

export class Chats {
  full = false; // the last write did not fit
  #chats = new Map();
  #stored = new Set(); // ids that were in storage once: if one is missing there, another tab has deleted it
  #storage;
  #listeners = new Set();

  constructor(storage = storageOf(window)) {
    this.#storage = storage;
    for (let i = 0; i < storage.length; i++) {
      const key = storage.key(i);
      if (key.startsWith(PREFIX)) this.#take(key.slice(PREFIX.length), storage.getItem(key));
    }
    addEventListener("storage", (event) => this.#heard(event));
  }

  // --- reading ---

  get(id) {
    return this.#chats.get(id);
  }

  all() {
    return [...this.#chats.values()].sort((a, b) => b.updated - a.updated);
  }

  listen(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get defaults() {
    try {
      return JSON.parse(this.#storage.getItem(DEFAULTS)) ?? FIRST;
    } catch {
      return FIRST;
    }
  }

  // --- writing ---

  // In this page only; false if the chat is gone.
  show(chat) {
    if (this.#stored.has(chat.id) && !this.#chats.has(chat.id)) return false;
    this.#chats.set(chat.id, chat);
    this.#tell();
    return true;
  }

  // And in storage, together with what other tabs have added to it.
  save(chat) {
    const there = this.#storage.getItem(PREFIX + chat.id);
    if (this.#stored.has(chat.id) && there === null) return;
    const whole = merge(chat, parsed(there));
    this.full = !this.#write(PREFIX + chat.id, whole);
    if (!this.full) this.#stored.add(chat.id);
    this.#chats.set(chat.id, whole);
    this.#tell();
  }

  remove(id) {
    this.#storage.removeItem(PREFIX + id);
    this.#stored.add(id);
    this.#chats.delete(id);
    this.full = false;
    this.#tell();
  }

  keepDefaults(settings) {
    this.#write(DEFAULTS, settings);
  }

  // --- inside ---

  #write(key, value) {
    try {
      this.#storage.setItem(key, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }

  #take(id, text) {
    const chat = parsed(text);
    if (chat?.id !== id) return;
    this.#stored.add(id);
    const ours = this.#chats.get(id);
    this.#chats.set(id, ours ? merge(ours, chat) : chat);
  }

  #heard(event) {
    if (event.storageArea !== this.#storage || !event.key?.startsWith(PREFIX)) return;
    const id = event.key.slice(PREFIX.length);
    if (event.newValue === null) this.#chats.delete(id);
    else this.#take(id, event.newValue);
    this.#tell();
  }

  #tell() {
    for (const listener of this.#listeners) listener();
  }
}

// Where a browser forbids storage, chats live as long as the page.
function storageOf(page) {
  try {
    return page.localStorage;
  } catch {
    return { length: 0, key: () => null, getItem: () => null, setItem: () => { throw new Error("forbidden"); }, removeItem() {} };
  }
}

function parsed(text) {
  try {
    return checked(JSON.parse(text));
  } catch {
    return null;
  }
}
