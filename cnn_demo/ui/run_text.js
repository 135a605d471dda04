// What the view of a run says in words: head, buttons, result, summary, log. Each function returns nodes or text.

// What the card and the comparison say of a run, by its title; "" where it is not known.
cnnDemo.results = (record) => {
  const { percent, count, clock } = cnnDemo;
  const { end, started, state } = record;
  const best = cnnDemo.bestEpoch(record);
  const device = started ? ` (${started.device})` : "";
  return {
    state,
    "test accuracy": end?.test_accuracy == null ? "" : `${percent(end.test_accuracy)} of ${count(end.test_pictures)}`,
    "validation accuracy":
      best?.validation_accuracy == null ? "" : `${percent(best.validation_accuracy)}, epoch ${best.epoch}`,
    steps: count(end?.step ?? record.points.at(-1)?.step ?? 0),
    time: end ? clock(end.seconds) : "",
    "images/s": end?.images_per_second ? count(Math.round(end.images_per_second)) + device : "",
  };
};

cnnDemo.origin = (record, isExample) => {
  if (isExample) return record.saved ? "the run that made the checkpoint shipped with this app" : "a recorded run";
  const { repo, commit } = record.source;
  if (repo) return `from the Hub: ${repo}${commit && `@${commit.slice(0, 8)}`}`;
  if (record.mine) return "your run";
  return record.owned ? "you are watching" : "from the command line";
};

// The title of a run, and for its owner a way to change it. rename(title) resolves to whether it was saved.
cnnDemo.titleNodes = (record, { editing, edit, rename }) => {
  const { make, button } = cnnDemo;
  if (!editing) {
    return [make("strong", {}, record.title), record.mine && button("Rename", () => edit(true), "small rename")];
  }
  const input = make("input", {
    type: "text", value: record.title, maxlength: 80, "aria-label": "Title of this run",
    onkeydown: async (event) => {
      if (event.key === "Escape") edit(false);
      else if (event.key === "Enter" && input.value.trim() && (await rename(input.value.trim()))) edit(false);
    },
  });
  setTimeout(() => input.select());
  return [input];
};

// actions: the functions that the buttons call. confirming: whether Discard was pressed once.
cnnDemo.actionButtons = (run, record, { isExample, replaying, confirming, actions }) => {
  const { button, copyButton } = cnnDemo;
  const { state, mine, saved } = record;
  const ended = cnnDemo.hasEnded(record);
  const link = () => `${location.origin}${location.pathname}?run=${run}`;
  const mayStop = mine && !ended && state !== "stopping";
  return [
    mayStop && button(state === "queued" ? "Leave the queue" : "Stop and keep the best", actions.stop, "stop"),
    cnnDemo.mayContinue(record) && button("Continue", actions.resume, "main"),
    saved && button("Classify a picture", actions.use, state === "finished" ? "main" : ""),
    saved && ended && (mine || !record.owned) && button("Save or download", actions.save),
    ended && record.points.length > 2 && button(replaying ? "Show the full run" : "Replay", actions.replay),
    !isExample && copyButton(link, "link to this run"),
    mine && ended && !confirming && button("Discard", () => actions.confirm(true)),
    mine && confirming && button("Yes, delete the run and its weights", actions.discard, "stop"),
    mine && confirming && button("Do not delete", () => actions.confirm(false)),
  ];
};

// Whether the visitor may continue a run: their own, trained here, that stopped before its end.
cnnDemo.mayContinue = (record) =>
  record.mine && !record.source.repo && cnnDemo.CAN_CONTINUE.includes(record.state);

cnnDemo.nextStep = (record) => {
  const saved = record.saved;
  if (cnnDemo.CAN_CONTINUE.includes(record.state) && !cnnDemo.mayContinue(record)) return "";
  return {
    finished: `Next: ${saved ? "classify a picture, or " : ""}change one setting and compare.`,
    stopped: `Next: press Continue${saved ? ", or classify with the weights so far" : ""}.`,
    failed: "Next: fix the problem above, then press Continue.",
    diverged: `Next: start again with a lower learning rate.${saved ? " The last saved weights are kept." : ""}`,
  }[record.state];
};

// The result of a run that has ended.
cnnDemo.cardNodes = (run, record) => {
  const { make, percent, count } = cnnDemo;
  const { end } = record;
  if (!end || !cnnDemo.hasEnded(record)) return [];
  const said = record.source.repo ? `, reported by ${record.source.repo}` : "";
  const big = end.test_accuracy != null && make("div", { class: "big" },
    make("strong", {}, percent(end.test_accuracy)),
    make("span", {}, `test accuracy (${count(end.test_pictures)} images)${said}`));
  const checkpoint = record.saved && make("code", {}, `checkpoints/${run}/model.safetensors`);
  const facts = { ...cnnDemo.results(record), checkpoint, state: "", "test accuracy": "" }; // these two stand elsewhere
  const known = Object.entries(facts).filter(([, fact]) => fact);
  const rows = known.flatMap(([title, fact]) => [make("dt", {}, title), make("dd", {}, fact)]);
  const next = cnnDemo.nextStep(record);
  return [big, make("dl", {}, ...rows), next && make("p", {}, next)];
};

// One sentence on the losses, which screen readers hear when it changes.
cnnDemo.summaryText = (record) => {
  const [first, last, best] = [record.epochs[0], record.epochs.at(-1), cnnDemo.bestEpoch(record)];
  if (!last) return record.points.length > 1 ? "The first epoch is in progress." : "";
  const latest = first === last ? "" : `, ${last.train_loss.toFixed(2)} in epoch ${last.epoch}`;
  const loss = `Training loss: ${first.train_loss.toFixed(2)} in epoch ${first.epoch}${latest}.`;
  if (best?.validation_accuracy == null) return loss;
  return `${loss} Best validation accuracy: ${cnnDemo.percent(best.validation_accuracy)}, after epoch ${best.epoch}.`;
};

// The training log in the words of the course project.
cnnDemo.logText = (record) => {
  const { end, log } = record;
  if (end?.test_accuracy == null) return log.join("\n");
  const accuracy = `${(100 * end.test_accuracy).toFixed(2)} %`;
  return [...log, `Accuracy of the network on the ${end.test_pictures} test images: ${accuracy}`].join("\n");
};
