// Answers on their way: each streams into its chat, also while another chat is shown, and is saved as it grows.
import { complete, readModels } from "./api.js";
import { heard, noChain } from "./chain.js";
import { branch, newId, withNode } from "./tree.js";

const SHOW_EVERY = 40; // ms between two looks at a growing answer
const SHORTEST = 0.1; // s; a rate over less says nothing
const SAVE_EVERY = 1500; // ms
export const ALIVE = 3 * SAVE_EVERY; // an unfinished answer that was not saved for so long is nobody's any more

export class Answers {
  #chats;
  #nameOf;
  #running = new Map(); // chat id -> {controller, node}
  onNews = () => {}; // a sentence worth saying aloud

  constructor(chats, nameOf) {
    this.#chats = chats;
    this.#nameOf = nameOf;
  }

  runs(chatId) {
    return this.#running.has(chatId);
  }

  stop(chatId) {
    this.#running.get(chatId)?.controller.abort();
  }

  // Another answer to the message `parent` of the chat; resolves with it when it has ended, in whatever way.
  async begin(chat, parent) {
    if (this.runs(chat.id)) return null;
    const controller = new AbortController();
    const now = Date.now();
    const node = { id: newId(), parent, role: "assistant", text: "", thoughts: "", model: chat.settings.model };
    const answer = new Answer({ ...node, at: now, seen: now, done: null, error: null, chain: noChain, stats: null });
    this.#running.set(chat.id, { controller, answer });
    this.#chats.save({ ...withNode(chat, answer.node), head: answer.node.id });
    const timers = [
      setInterval(() => this.#show(chat.id, answer), SHOW_EVERY),
      setInterval(() => this.#save(chat.id, answer), SAVE_EVERY),
    ];
    try {
      const body = bodyOf(chat, parent);
      body.model ??= (await readModels(controller.signal))[0]; // somebody was quicker than the list of models
      answer.node = { ...answer.node, model: body.model };
      for await (const event of complete(body, controller.signal)) {
        const said = answer.take(event, this.#nameOf);
        if (said) this.onNews(said);
        if (!this.#chats.get(chat.id)) controller.abort(); // deleted, here or in another tab
      }
      answer.finish(answer.reason ?? "stop");
    } catch (error) {
      if (controller.signal.aborted) answer.finish("stopped");
      else answer.fail(error);
    } finally {
      timers.forEach(clearInterval);
      this.#running.delete(chat.id);
      this.#save(chat.id, answer);
    }
    return answer.node;
  }

  #show(chatId, answer) {
    const chat = this.#chats.get(chatId);
    if (chat && chat.nodes[answer.node.id] !== answer.node) this.#chats.show(withNode(chat, answer.node));
  }

  #save(chatId, answer) {
    const chat = this.#chats.get(chatId);
    if (chat) this.#chats.save(withNode(chat, answer.seen()));
  }
}

class Answer {
  reason = null;
  #began = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  constructor(node) {
    this.node = node;
  }

  // Returns a sentence when something happened that is worth one.
  take({ news, chunk }, nameOf) {
    if (news) {
      const chain = heard(this.node.chain, news, nameOf);
      const moment = chain.moments !== this.node.chain.moments ? chain.moments.at(-1) : null;
      this.node = { ...this.node, chain };
      return moment?.text ?? null;
    }
    const choice = chunk?.choices?.[0];
    const text = choice?.delta?.content;
    const thoughts = choice?.delta?.reasoning_content;
    if (text || thoughts) this.#grow(text ?? "", thoughts ?? "");
    if (choice?.finish_reason) this.reason = choice.finish_reason;
    if (chunk?.usage) this.node = { ...this.node, stats: this.#stats(chunk.usage) };
    return null;
  }

  finish(done) {
    const chain = { ...this.node.chain, waiting: null };
    this.node = { ...this.node, chain, done, stats: this.node.stats ?? this.#stats(null) };
  }

  fail(error) {
    this.finish("error");
    const { message, status = 0, after = null } = error;
    this.node = { ...this.node, error: { message, status, after } };
  }

  seen() {
    this.node = { ...this.node, seen: Date.now() };
    return this.node;
  }

  #grow(text, thoughts) {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
    this.node = { ...this.node, text: this.node.text + text, thoughts: this.node.thoughts + thoughts };
  }

  // Of tokens the gateway counted, else of pieces that came.
  #stats(usage) {
    if (this.#first === null) return null;
    const tokens = usage?.completion_tokens ?? this.#pieces;
    const spent = (this.#last - this.#first) / 1000;
    return {
      tokens,
      first: (this.#first - this.#began) / 1000,
      rate: spent > SHORTEST && tokens > 1 ? (tokens - 1) / spent : null,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
      prompt: usage?.prompt_tokens ?? null,
    };
  }
}

function bodyOf(chat, parent) {
  const { model, system, temperature, top_p, max_tokens, seed } = chat.settings;
  const said = branch(chat, parent)
    .filter((node) => node.role === "user" || node.text)
    .map((node) => ({ role: node.role, content: node.text }));
  const messages = system?.trim() ? [{ role: "system", content: system }, ...said] : said;
  const chosen = { temperature, top_p, max_tokens, seed };
  const sampling = Object.fromEntries(Object.entries(chosen).filter(([, value]) => Number.isFinite(value)));
  return { model, messages, ...sampling };
}
