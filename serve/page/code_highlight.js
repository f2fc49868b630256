/** Light syntax colouring, line by line: comments, strings, numbers, keywords, names that are called. */

const words = (text) => new Set(text.split(" "));

const C_LIKE = words(
  "abstract as async await auto bool boolean break byte case catch char class concept const constexpr continue crate default " +
    "defer delete do double else enum explicit export extends extern final finally float fn for from func function go goto if " +
    "impl implements import in inline instanceof int interface let long loop match mod module mut namespace new noexcept of " +
    "operator override package private protected pub public readonly register return self short signed sizeof static struct " +
    "super switch template this throw throws trait try type typedef typename typeof union unsafe unsigned use using var virtual " +
    "void volatile where while with yield __global__ __device__ __shared__",
);
const PYTHON = words(
  "and as assert async await break case class continue def del elif else except finally for from global if import in is lambda " +
    "match nonlocal not or pass raise return self try while with yield",
);
const SHELL = words("case do done elif else esac export fi for function if in local return set then until while");
const SQL = words(
  "add all alter and as asc between by case create delete desc distinct drop else end exists from full group having in index " +
    "inner insert into is join left like limit not null on or order outer primary key right select set table then union update " +
    "values when where with",
);
const CONSTANTS = words("true false null none undefined nil nan inf nullptr True False None NaN NULL");

const C_STYLE = { keywords: C_LIKE, comment: "//", blocks: [["/*", "*/", "comment"]], quotes: "\"'" };
const HASH_STYLE = { keywords: new Set(), comment: "#", blocks: [], quotes: "\"'" };
const LANGUAGES = {
  javascript: { ...C_STYLE, blocks: [...C_STYLE.blocks, ["`", "`", "string"]] },
  python: { ...HASH_STYLE, keywords: PYTHON, blocks: [['"""', '"""', "string"], ["'''", "'''", "string"]] },
  shell: { ...HASH_STYLE, keywords: SHELL },
  sql: { ...C_STYLE, keywords: SQL, comment: "--", anyCase: true },
  markup: { keywords: new Set(), comment: null, blocks: [["<!--", "-->", "comment"]], quotes: "\"'" },
  plain: null,
};
const ALIASES = {
  js: "javascript", jsx: "javascript", ts: "javascript", tsx: "javascript", typescript: "javascript", mjs: "javascript",
  py: "python", python3: "python", sh: "shell", bash: "shell", zsh: "shell", console: "shell", html: "markup", xml: "markup",
  svg: "markup", text: "plain", txt: "plain", plaintext: "plain", markdown: "plain", md: "plain", "": "plain",
};
for (const name of ["yaml", "yml", "toml", "ini", "dockerfile", "makefile", "ruby", "rb", "r"]) LANGUAGES[name] = HASH_STYLE;

const NUMBER = /0[xX][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const NAME = /[\p{L}_$][\p{L}\p{N}_$]*/uy;
const LONGEST_LINE = 4000;

/** Colours the lines of one block in order; remembers comments and strings that go over several lines. */
export class Highlighter {
  #inside = null;

  constructor(language) {
    const name = ALIASES[language] ?? language;
    this.rules = Object.hasOwn(LANGUAGES, name) ? LANGUAGES[name] : C_STYLE;
  }

  /** Pieces `[kind, text]` of a line, in order; kind is comment, string, number, keyword, constant, call or null. */
  line(text) {
    if (!this.rules || text.length > LONGEST_LINE) return text ? [[null, text]] : [];
    const pieces = [];
    const add = (kind, piece) => {
      if (!piece) return;
      if (pieces.length && pieces.at(-1)[0] === kind) pieces.at(-1)[1] += piece;
      else pieces.push([kind, piece]);
    };
    for (let at = 0; at < text.length; ) {
      const [kind, end] = this.#piece(text, at);
      add(kind, text.slice(at, end));
      at = end;
    }
    return pieces;
  }

  #piece(text, at) {
    if (this.#inside) return this.#untilEnd(text, at, at);
    const { blocks, comment, quotes } = this.rules;
    const block = blocks.find(([begin]) => text.startsWith(begin, at));
    if (block) {
      this.#inside = block;
      return this.#untilEnd(text, at, at + block[0].length);
    }
    if (comment && text.startsWith(comment, at) && this.#commentMayStart(text, at)) return ["comment", text.length];
    if (quotes.includes(text[at])) return ["string", closingQuote(text, at)];
    return this.#word(text, at);
  }

  // In a shell "a#b" is a word.
  #commentMayStart(text, at) {
    return this.rules.comment !== "#" || at === 0 || /[\s;(){}[\],]/.test(text[at - 1]);
  }

  #untilEnd(text, at, from) {
    const [, end, kind] = this.#inside;
    const found = text.indexOf(end, from);
    if (found === -1) return [kind, text.length];
    this.#inside = null;
    return [kind, found + end.length];
  }

  #word(text, at) {
    NUMBER.lastIndex = at;
    const number = NUMBER.exec(text);
    if (number) return ["number", NUMBER.lastIndex];
    NAME.lastIndex = at;
    const name = NAME.exec(text)?.[0];
    if (!name) return [null, at + 1];
    const end = at + name.length;
    if (this.rules.keywords.has(this.rules.anyCase ? name.toLowerCase() : name)) return ["keyword", end];
    if (CONSTANTS.has(name)) return ["constant", end];
    return [text[end] === "(" ? "call" : null, end];
  }
}

// A quote that the line doesn't close (an apostrophe in a shell's text, say) colours only itself.
function closingQuote(text, at) {
  for (let end = at + 1; end < text.length; end++) {
    if (text[end] === "\\") end++;
    else if (text[end] === text[at]) return end + 1;
  }
  return at + 1;
}
