// Code in four colours, for any language that looks like one: comments, strings, numbers, keywords. Makes text nodes only.

const WORDS =
  "abstract|and|as|assert|async|await|begin|break|case|catch|class|const|continue|def|default|del|do|done|elif|else|end|" +
  "enum|esac|except|export|extends|false|False|fi|finally|fn|for|foreach|from|func|function|global|go|if|impl|implements|" +
  "import|in|instanceof|interface|is|lambda|let|loop|match|mod|module|move|mut|namespace|new|nil|None|nonlocal|not|null|" +
  "or|package|pass|private|protected|pub|public|raise|ref|return|self|select|static|struct|super|switch|then|this|throw|" +
  "trait|true|True|try|type|typeof|undefined|unsafe|use|using|var|void|when|where|while|with|yield|" +
  "SELECT|FROM|WHERE|INSERT|INTO|VALUES|UPDATE|SET|DELETE|CREATE|TABLE|JOIN|ON|GROUP|ORDER|BY|LIMIT|AND|OR|NOT|NULL";
const HASH = new Set(["python", "py", "sh", "bash", "shell", "zsh", "ruby", "rb", "yaml", "yml", "toml", "perl", "r", "make", "makefile", "dockerfile"]);
const DASHES = new Set(["sql", "lua", "haskell", "hs", "ada"]);
const PLAIN = new Set(["", "text", "txt", "plain", "plaintext", "output", "console", "markdown", "md"]);
const LONGEST = 60_000; // characters; longer code stays in one colour

export function highlight(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > LONGEST) return [document.createTextNode(code)];
  const comment = HASH.has(name) ? "#[^\\n]*" : DASHES.has(name) ? "--[^\\n]*" : "\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)|<!--[\\s\\S]*?(?:-->|$)";
  const string = `"""[\\s\\S]*?(?:"""|$)|"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'?|\`(?:\\\\.|[^\`\\\\])*\`?`;
  const pattern = new RegExp(`(?<comment>${comment})|(?<string>${string})|(?<number>\\b\\d[\\w.]*)|(?<keyword>\\b(?:${WORDS})\\b)`, "g");
  return pieces(code, pattern);
}

function pieces(code, pattern) {
  const nodes = [];
  let at = 0;
  for (const found of code.matchAll(pattern)) {
    if (found.index > at) nodes.push(document.createTextNode(code.slice(at, found.index)));
    const span = document.createElement("span");
    span.className = `code-${Object.entries(found.groups).find(([, text]) => text !== undefined)[0]}`;
    span.textContent = found[0];
    nodes.push(span);
    at = found.index + found[0].length;
  }
  nodes.push(document.createTextNode(code.slice(at)));
  return nodes;
}
