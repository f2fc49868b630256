/** Puts the page together. */

import { Announcer } from "./announcer.js";
import { ChatSession } from "./chat_session.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { figures } from "./figures.js";
import { LivePanel } from "./live_panel.js";
import { ModelChoice } from "./model_choice.js";
import { ServerStatus } from "./server_status.js";
import { SettingsPanel } from "./settings_panel.js";
import { SidePanel } from "./side_panel.js";
import { Tabs } from "./tabs.js";
import { setUpThemeButton } from "./theme.js";
import { ToolsPanel } from "./tools_panel.js";
import { Transcript } from "./transcript.js";

const canHover = matchMedia("(hover: hover)");
const announcer = new Announcer(byId("announcer"));
const model = new ModelChoice({ text: byId("model-name"), select: byId("model-select"), welcome: byId("welcome-model") });
const settings = new SettingsPanel({ onKeyChange: () => model.refresh() });
const tools = new ToolsPanel();
const live = new LivePanel(byId("panel-live"));
const refreshLive = () => live.refresh();
const panel = new SidePanel({
  panel: byId("panel"),
  button: byId("panel-button"),
  closeButton: byId("panel-close"),
  chat: byId("chat"),
  tabs: new Tabs(byId("tabs"), refreshLive),
  onChange: refreshLive,
});

const session = new ChatSession(
  () => ({ model: model.name ?? undefined, ...settings.sampling(), ...tools.options(), systemPrompt: settings.systemPrompt }),
  {
    turnAdded(turn) {
      transcript.add(turn);
      if (turn.role === "assistant") showRunning();
    },
    turnChanged(turn) {
      transcript.changed(turn);
      if (turn.toolCalls.length) tools.showCalls(session.conversation.turns);
    },
    turnEnded(turn) {
      transcript.ended(turn);
      tools.showCalls(session.conversation.turns);
      live.answered(turn.timing);
      announcer.say(turn.error ? "" : `Answer ended. ${figures(turn)}`);
      showRunning();
    },
    turnsReplaced() {
      transcript.showAll(session.conversation.turns);
      tools.showCalls(session.conversation.turns);
      showRunning();
    },
    timing: (_, timing) => live.answering(timing),
  },
);

const transcript = new Transcript({
  list: byId("transcript"),
  scroller: byId("scroller"),
  welcome: byId("welcome"),
  toLatest: byId("to-latest"),
  actions: {
    speaker: () => model.shortName,
    announce: (text) => announcer.say(text),
    regenerate(turn) {
      session.regenerate(turn);
      focusComposer();
    },
    edit(turn, text) {
      session.edit(turn, text);
      focusComposer();
    },
    continueWithResults() {
      session.continueWithResults();
      focusComposer();
    },
    enterKey() {
      panel.open("tab-settings");
      settings.key.focus();
    },
  },
});

const composer = new Composer({
  field: byId("message"),
  button: byId("send"),
  send(text) {
    if (session.conversation.pendingCalls.length) {
      transcript.focusResult(session.conversation.turns.at(-1));
      showNotice("The model waits for its tool's result. Enter it, or edit the question.");
      return false;
    }
    hideNotice();
    session.ask(text);
    return true;
  },
  stop: () => session.stop(),
});

// What had the focus is gone. On a touch screen the button takes it: the field would bring up the keyboard.
function focusComposer() {
  byId(canHover.matches ? "message" : "send").focus();
}

function showRunning() {
  composer.running = session.running;
  document.body.classList.toggle("busy", session.running);
  byId("clear").hidden = session.conversation.isEmpty;
}

let undoTurns = null;

function showNotice(text, undo = null) {
  byId("notice-text").textContent = text;
  byId("undo").hidden = undo === null;
  byId("notice").hidden = false;
  undoTurns = undo;
}

function hideNotice() {
  byId("notice").hidden = true;
  undoTurns = null;
}

byId("clear").addEventListener("click", () => {
  showNotice("Conversation cleared.", session.clear());
  focusComposer();
});
byId("undo").addEventListener("click", () => {
  session.restore(undoTurns);
  hideNotice();
  focusComposer();
});
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    if (button.dataset.tools) tools.useExample();
    composer.text = button.dataset.prompt;
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (panel.covers) panel.close();
  else session.stop();
});

setUpThemeButton(byId("theme"));
new ServerStatus({ node: byId("status"), text: byId("status-text"), steps: byId("status-steps"), onReady: () => model.refresh() });
transcript.showAll(session.conversation.turns);
tools.showCalls(session.conversation.turns);
showRunning();
if (canHover.matches) focusComposer();
