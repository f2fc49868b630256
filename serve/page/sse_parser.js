/** Server-sent events, as the HTML standard writes them, out of text that arrives in any pieces. */

export class SseParser {
  #line = "";
  #data = [];
  #skipLineFeed = false;

  /** Takes the next piece of the stream; returns the `data` of every event that it completes. */
  feed(text) {
    const events = [];
    let start = 0;
    // A line feed that opens this piece may be the second half of the CRLF that closed the last one.
    if (this.#skipLineFeed && text.startsWith("\n")) start = 1;
    if (text) this.#skipLineFeed = false;
    for (let at = start; at < text.length; at++) {
      const char = text[at];
      if (char !== "\n" && char !== "\r") continue;
      this.#endLine(this.#line + text.slice(start, at), events);
      this.#line = "";
      if (char === "\r") {
        if (text[at + 1] === "\n") at++;
        else if (at + 1 === text.length) this.#skipLineFeed = true;
      }
      start = at + 1;
    }
    this.#line += text.slice(start);
    return events;
  }

  #endLine(line, events) {
    if (line === "") {
      if (this.#data.length) events.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line.startsWith("data:")) {
      this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    }
    // Comments (": keep-alive") and the fields event, id and retry say nothing that the page needs.
  }
}
