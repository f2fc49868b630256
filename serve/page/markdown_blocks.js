/** Splits Markdown into blocks, line by line, so that a block that is closed never has to be looked at again. */

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*))?$/;
const INNER_FENCE = /^\s*(`{3,}|~{3,})/;

/** The cells' alignments, if `line` is the dashes under a table's header; else null. */
export function tableAlignments(line) {
  if (!line.includes("-") || !/^[\s|:-]+$/.test(line) || !line.includes("|")) return null;
  const cells = tableCells(line);
  if (!cells.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return cells.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
}

/** The cells of a table's line; a backslash keeps a bar in its cell. */
export function tableCells(line) {
  const cells = [];
  let cell = "";
  const text = line.trim().replace(/^\|/, "");
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\" && text[at + 1] === "|") {
      cell += "|";
      at++;
    } else if (text[at] === "|") {
      cells.push(cell.trim());
      cell = "";
    } else {
      cell += text[at];
    }
  }
  if (cell.trim() || !cells.length) cells.push(cell.trim());
  return cells;
}

/** `{indent, ordered, number, content, width}` of a line that begins a list's item; else null. */
export function listItem(line) {
  const match = ITEM.exec(line);
  if (!match || RULE.test(line)) return null;
  const [, space, marker, content = ""] = match;
  const indent = indentOf(space);
  const ordered = marker.length > 1 || /\d/.test(marker);
  return { indent, ordered, number: ordered ? parseInt(marker, 10) : null, content, width: indent + marker.length + 1 };
}

export function indentOf(line) {
  let columns = 0;
  for (const char of line) {
    if (char === " ") columns += 1;
    else if (char === "\t") columns += 4;
    else break;
  }
  return columns;
}

/** `{level, text}` of a heading's line; else null. */
export function heading(line) {
  const match = HEADING.exec(line);
  return match && { level: match[1].length, text: match[2] ?? "" };
}

/**
 * Takes lines, gives blocks `{kind, lines, size}`. Kinds: paragraph, heading, rule, quote, list, table, and fence, whose
 * `lines` are those between the fences and which has a `language`.
 */
export class BlockSplitter {
  /** The block that the next line may still belong to, or null. */
  open = null;

  /** Takes a line (without its line feed); returns the blocks that it closed. */
  push(line) {
    const closed = [];
    if (this.open && !this.#continues(line)) this.#close(closed);
    if (this.open) this.#add(line, closed);
    else if (line.trim()) this.#begin(line, closed);
    return closed;
  }

  /** Closes what is open; returns it as a list of at most one block. */
  end() {
    const closed = [];
    if (this.open) this.#close(closed);
    return closed;
  }

  #close(closed) {
    const block = this.open;
    while (block.kind === "list" && block.lines.at(-1)?.trim() === "") block.lines.pop();
    closed.push(block);
    this.open = null;
  }

  #begin(line, closed) {
    const fence = FENCE.exec(line);
    if (fence) {
      this.open = { kind: "fence", lines: [], size: 0, indent: fence[1].length, mark: fence[2], language: fence[3].trim() };
      return;
    }
    const kind = startOf(line) ?? "paragraph";
    this.open = { kind, lines: [line], size: line.length, item: kind === "list" ? listItem(line) : null, blank: false, inner: null };
    if (kind === "list") this.#trackInnerFence(line);
    if (kind === "heading" || kind === "rule") this.#close(closed);
  }

  #add(line, closed) {
    const block = this.open;
    if (block.kind === "fence") {
      if (closesFence(line, block.mark)) {
        this.#close(closed);
        return;
      }
      line = line.slice(Math.min(block.indent, line.length - line.trimStart().length));
    } else if (block.kind === "list") {
      this.#trackInnerFence(line);
      block.blank = !line.trim();
    } else if (block.kind === "paragraph" && block.lines.length === 1 && tableAlignments(line) && block.lines[0].includes("|")) {
      block.kind = "table";
    }
    block.lines.push(line);
    block.size += line.length + 1;
  }

  #continues(line) {
    const block = this.open;
    switch (block.kind) {
      case "fence":
        return true;
      case "quote":
        return QUOTE.test(line);
      case "table":
        return line.includes("|");
      case "list":
        return this.#continuesList(block, line);
      default:
        return line.trim() !== "" && !interrupts(line);
    }
  }

  #continuesList(block, line) {
    if (block.inner || !line.trim()) return true;
    const item = listItem(line);
    if (indentOf(line) >= block.item.indent + 2) return true;
    if (item) return item.ordered === block.item.ordered;
    return !block.blank && !interrupts(line);
  }

  // A fence inside an item keeps the list open over blank and unindented lines.
  #trackInnerFence(line) {
    const block = this.open;
    const text = listItem(line)?.content ?? line;
    const mark = INNER_FENCE.exec(text)?.[1];
    if (block.inner) {
      if (closesFence(text, block.inner)) block.inner = null;
    } else if (mark) {
      block.inner = mark;
    }
  }
}

function closesFence(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

function startOf(line) {
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (QUOTE.test(line)) return "quote";
  if (listItem(line)) return "list";
  return null;
}

// An ordered list may interrupt a paragraph only from 1 on (CommonMark): "in\n1984. That year" is no list.
function interrupts(line) {
  if (FENCE.test(line)) return true;
  const kind = startOf(line);
  if (kind !== "list") return kind !== null;
  const item = listItem(line);
  return item.content !== "" && (!item.ordered || item.number === 1);
}
