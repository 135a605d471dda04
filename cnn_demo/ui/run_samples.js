// The held-out images of one to four runs, one of each class: the network's answers, and how its scores have changed.
cnnDemo.runSamples = (box) => {
  const { make, shape, setText, rebuild, percent, count } = cnnDemo;

  function figure(png, name) {
    const sparkline = shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none" }, shape("polyline"));
    const texts = ["mark", "said", "score"].map((kind) => make("span", { class: kind }));
    const caption = make("figcaption", { "aria-hidden": "true" }, make("span", {}, name), ...texts, sparkline);
    return make("figure", {}, make("img", { src: `data:image/png;base64,${png}` }), caption); // alt: the same in words
  }

  // The part of a run. index: its place among the runs that are drawn, which has a colour; title: "" where it is alone.
  function section({ started, classes }, index, title) {
    const dot = title && make("span", { class: `dot run-${index + 1}` });
    const figures = started.samples.map((png, label) => figure(png, classes[label]));
    const row = make("div", { class: "figures", style: `--run: var(--run-${index + 1})` }, ...figures);
    const head = make("h3", {}, dot || "", title || "Held-out images, one of each class");
    return make("section", {}, head, make("p", { class: "quiet" }), row);
  }

  // Writes into a figure what the network takes it for. known: [step, class, score of the true class] of each check.
  function answer(node, name, known, classes) {
    const [, mark, text, score] = node.querySelectorAll("span");
    const [[since, , before], [step, taken, now]] = [known[0], known.at(-1)];
    const said = classes[taken] ?? "unknown";
    const right = said === name;
    node.className = right ? "right" : "mistake";
    setText(mark, right ? "✓" : "✗");
    setText(text, said);
    setText(score, percent(now));
    node.querySelector("img").alt = `${name}: answered ${said}, ${right ? "correct" : "wrong"}. Score of ${name}: ` +
      `${percent(now)} after step ${count(step)}, ${percent(before)} after step ${count(since)}.`;
    const points = known.map(([at, , share]) => `${(100 * at) / (step || 1)},${100 - 100 * share}`);
    node.querySelector("polyline").setAttribute("points", points.join(" "));
  }

  function update(part, { validations, classes }, upTo) {
    const seen = validations.filter(({ step }, index) => step <= upTo || !index);
    const at = seen.length ? `After step ${count(seen.at(-1).step)}` : "Soon";
    const note = `${at}: the network's answer, and its score for the true class so far. It never trains on them.`;
    setText(part.querySelector("p"), note);
    part.querySelectorAll("figure").forEach((node, label) => {
      const known = seen.filter(({ answers }) => answers[label]).map(({ step, answers }) => [step, ...answers[label]]);
      if (known.length) answer(node, classes[label], known, classes);
      else node.querySelector("img").alt = `${classes[label]}: no answer yet.`;
    });
  }

  // runs: [[id, record]], the first one in view; upTo: the last step of it that is drawn.
  return (runs, upTo) => {
    const indexed = runs.map(([id, record], index) => ({ id, record, index }));
    const shown = indexed.filter(({ record }) => record.started?.samples.length);
    const key = shown.map(({ id, record, index }) => [id, record.started.seq, record.title, index, runs.length].join());
    box.hidden = !shown.length;
    rebuild(box, key.join(), () =>
      shown.map(({ record, index }) => section(record, index, runs.length > 1 && record.title)));
    shown.forEach(({ record, index }, i) => update(box.children[i], record, index ? Infinity : upTo));
  };
};
