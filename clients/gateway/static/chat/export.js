// A chat as a file: all of it as JSON, or the branch that is shown as markdown.
import { branch, titleOf } from "./tree.js";

export function asMarkdown(chat) {
  const system = chat.settings.system?.trim();
  const parts = branch(chat).map((node) => {
    const who = node.role === "user" ? "You" : node.model || "Answer";
    return `## ${who}\n\n${node.text.trim()}`;
  });
  return [`# ${titleOf(chat)}`, ...(system ? [`> ${system.replaceAll("\n", "\n> ")}`] : []), ...parts].join("\n\n") + "\n";
}

export function download(chat, format) {
  const [text, type] =
    format === "json" ? [JSON.stringify(chat, null, 2), "application/json"] : [asMarkdown(chat), "text/markdown"];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${titleOf(chat).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 48) || "chat"}.${format === "json" ? "json" : "md"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
