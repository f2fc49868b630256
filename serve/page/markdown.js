/**
 * Markdown, as a model writes it, into DOM nodes, while it arrives.
 *
 * Nothing here parses HTML: every node comes from createElement, every text is a text node, so a `<script>` that a model
 * writes is shown, not run. Work stays linear in the answer's length: closed blocks are never touched again, code grows by
 * lines, and any other open block is drawn anew only once it has grown by a fixed share.
 */

import { CodeView } from "./code_view.js";
import { element } from "./dom.js";
import { BlockSplitter, heading, indentOf, listItem, tableAlignments, tableCells } from "./markdown_blocks.js";
import { renderInline } from "./markdown_inline.js";

const DEEPEST = 8;
const REDRAW_ALWAYS_BELOW = 2048;
const REDRAW_SHARE = 1 / 32;
// A line that is only a mark so far ("##", "1.", "```py") says nothing yet; it is drawn with what follows.
const UNDECIDED = /^\s*(?:[`~]{1,3}[\w+-]*|#{1,6}|[-*+>_]|\d{1,3}[.)]|-{2,}|\*{2,3})\s*$/;

/** Renders a text that comes in pieces into `container`. `onBlock(text)` is told the text of every block that is complete. */
export class MarkdownStream {
  #splitter = new BlockSplitter();
  #partial = "";
  #drawn = [];
  #drawnSize = -1;
  #code = null;

  constructor(container, onBlock = () => {}) {
    this.container = container;
    this.onBlock = onBlock;
  }

  append(text) {
    let from = this.#partial.length;
    this.#partial += text;
    let start = 0;
    for (let end; (end = this.#partial.indexOf("\n", from)) !== -1; start = from = end + 1) {
      this.#commit(this.#partial.slice(start, end).replace(/\r$/, ""));
    }
    this.#partial = this.#partial.slice(start);
    this.#draw();
  }

  /** The text is complete. */
  finish() {
    if (this.#partial) this.#commit(this.#partial);
    this.#partial = "";
    this.#splitter.end().forEach((block) => this.#settle(block));
    this.#replace([]);
  }

  #commit(line) {
    const before = this.#splitter.open;
    for (const block of this.#splitter.push(line)) this.#settle(block);
    const open = this.#splitter.open;
    if (open?.kind === "fence") {
      if (open !== before) this.#startCode(open);
      else this.#code.addLine(open.lines.at(-1));
    }
  }

  #startCode(block) {
    this.#replace([]);
    this.#code = new CodeView(block.language);
    this.container.append(this.#code.node);
  }

  // The block is closed: its last drawing stays for good.
  #settle(block) {
    if (this.#code) {
      this.#code.setPartial("");
      this.#code = null;
      this.onBlock(`Code, ${block.language || "text"}, ${block.lines.length} lines.`);
      return;
    }
    const nodes = renderBlock(block, {});
    this.#replace(nodes);
    this.#drawn = [];
    this.onBlock(nodes.map((node) => node.innerText).join(" "));
  }

  #draw() {
    const block = this.#splitter.open;
    if (this.#code) {
      this.#code.setPartial(/^\s*[`~]+\s*$/.test(this.#partial) ? "" : this.#partial);
      return;
    }
    const partial = UNDECIDED.test(this.#partial) ? "" : this.#partial;
    const size = (block?.size ?? 0) + partial.length;
    const grown = size - this.#drawnSize;
    if (this.#drawnSize >= 0 && size > REDRAW_ALWAYS_BELOW && grown < size * REDRAW_SHARE) return;
    const lines = block ? [...block.lines] : [];
    if (partial) lines.push(partial);
    this.#replace(renderLines(lines, { unfinished: true }));
    this.#drawnSize = size;
  }

  #replace(nodes) {
    this.#drawn.forEach((node) => node.remove());
    this.#drawn = nodes;
    this.#drawnSize = -1;
    this.container.append(...nodes);
  }
}

/** Renders a whole text into `container`. */
export function renderMarkdown(container, text) {
  const stream = new MarkdownStream(container);
  stream.append(text);
  stream.finish();
}

function renderLines(lines, { unfinished = false, depth = 0 }) {
  if (depth > DEEPEST) return [element("p", {}, lines.join("\n"))];
  const splitter = new BlockSplitter();
  const blocks = lines.flatMap((line) => splitter.push(line)).concat(splitter.end());
  return blocks.flatMap((block, index) => renderBlock(block, { unfinished: unfinished && index === blocks.length - 1, depth }));
}

function renderBlock(block, { unfinished = false, depth = 0 }) {
  switch (block.kind) {
    case "fence":
      return [CodeView.of(block).node];
    case "heading":
      return renderHeading(heading(block.lines[0]), unfinished);
    case "rule":
      return [element("hr")];
    case "quote": {
      const lines = block.lines.map((line) => line.replace(/^ {0,3}> ?/, ""));
      return [element("blockquote", {}, ...renderLines(lines, { unfinished, depth: depth + 1 }))];
    }
    case "list":
      return [renderList(block, { unfinished, depth })];
    case "table":
      return [renderTable(block.lines)];
    default:
      // A table's header comes before the dashes that make it one; it is drawn as one from the start.
      if (unfinished && block.lines[0].trimStart().startsWith("|") && block.lines.length <= 2) {
        return [renderTable([block.lines[0], "|-|"])];
      }
      return [renderParagraph(block.lines, unfinished)];
  }
}

function renderParagraph(lines, unfinished) {
  const paragraph = element("p");
  renderInline(paragraph, lines.map((line) => line.trimStart()).join("\n").trimEnd(), { unfinished });
  return paragraph;
}

function renderHeading({ level, text }, unfinished) {
  if (!text) return [];
  // The page's own headings are h1 and h2, so the answer's begin below them.
  const node = element(`h${Math.min(level + 2, 6)}`, { class: `level-${level}` });
  renderInline(node, text, { unfinished });
  return [node];
}

function renderList(block, { unfinished, depth }) {
  const base = block.item.indent;
  const items = [];
  for (const line of block.lines) {
    const item = listItem(line);
    if (item && item.indent < base + 2) items.push({ width: item.width, lines: [item.content] });
    else items.at(-1).lines.push(line.slice(leadingToDrop(line, items.at(-1).width)));
  }
  const list = element(block.item.ordered ? "ol" : "ul");
  if (block.item.ordered && block.item.number !== 1) list.setAttribute("start", block.item.number);
  items.forEach((item, index) => {
    const nodes = renderLines(item.lines, { unfinished: unfinished && index === items.length - 1, depth: depth + 1 });
    const entry = element("li");
    for (const node of nodes) {
      if (node === nodes[0] && node.tagName === "P") entry.append(...node.childNodes);
      else entry.append(node);
    }
    list.append(entry);
  });
  return list;
}

function leadingToDrop(line, width) {
  const leading = line.length - line.trimStart().length;
  return line.startsWith("\t") ? Math.min(leading, 1) : Math.min(leading, indentOf(line), width);
}

function renderTable([head, dashes, ...body]) {
  const alignments = tableAlignments(dashes) ?? [];
  const columns = tableCells(head);
  const row = (cells, tag) =>
    element("tr", {}, ...columns.map((_, index) => {
      const cell = element(tag, { class: alignments[index] ?? false, scope: tag === "th" && "col" });
      renderInline(cell, cells[index] ?? "");
      return cell;
    }));
  const table = element("table", {}, element("thead", {}, row(columns, "th")));
  table.append(element("tbody", {}, ...body.map((line) => row(tableCells(line), "td"))));
  // Wide tables scroll by themselves; the tab stop lets the keyboard do it.
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}
