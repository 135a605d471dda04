// A checkpoint's evaluation (training/scoring.py says what it holds): bars, confusion matrix, reliability, mistakes.
// Drawings have a sentence and a table for screen readers.
(() => {
  const { make, shape, row, table, count, percent, sum } = cnnDemo;
  const [CELL, LEFT, TOP] = [30, 84, 66]; // of the confusion matrix, in units of its drawing
  const SIDE = 300; // of the reliability diagram

  function drawing(width, height, sentence, parts, heads, rows, note) {
    const picture = shape("svg", { role: "img", "aria-label": sentence, viewBox: `0 0 ${width} ${height}` }, ...parts);
    const numbers = table({ class: "visually-hidden" }, heads, rows.map(([first, ...rest]) => row({}, first, rest)));
    return [picture, numbers, make("p", { class: "quiet" }, note)];
  }

  function bars(classes, counts) {
    const rows = counts.map((row, i) => {
      const share = row[i] / Math.max(1, sum(row));
      const bar = make("div", { style: `width:${(100 * share).toFixed(2)}%` });
      return make("tr", {}, make("th", { scope: "row" }, classes[i]), make("td", { class: "meter" }, bar),
        make("td", {}, percent(share)));
    });
    return [make("table", { class: "scores" }, make("tbody", {}, ...rows))];
  }

  // Right answers are blue, by their share of the class; mistakes orange, by the most frequent one.
  function confusion(classes, counts) {
    const wrong = counts.flatMap((row, i) => row.map((cell, j) => (i === j ? { cell: 0 } : { cell, i, j })));
    const worst = wrong.reduce((most, one) => (one.cell > most.cell ? one : most), { cell: 0 });
    const parts = counts.flatMap((row, i) => {
      const y = TOP + CELL * i;
      const along = `translate(${LEFT + CELL * i + 19} ${TOP - 8}) rotate(-45)`;
      const cells = row.flatMap((cell, j) => {
        const x = LEFT + CELL * j;
        const right = i === j;
        const shade = right ? cell / Math.max(1, sum(row)) : (0.65 * cell) / Math.max(1, worst.cell);
        const box = { x, y, width: CELL - 1, height: CELL - 1, "fill-opacity": shade.toFixed(2) };
        const style = right && shade > 0.5 ? "strong" : "";
        const text = { class: style, x: x + CELL / 2, y: y + 19, "text-anchor": "middle" };
        return [shape("rect", { class: right ? "right" : "mistake", ...box }), shape("text", text, cell)];
      });
      const name = shape("text", { x: LEFT - 6, y: y + 19, "text-anchor": "end" }, classes[i]);
      return [name, shape("text", { transform: along }, classes[i]), ...cells];
    });
    const times = worst.cell === 1 ? "once" : `${count(worst.cell)} times`;
    const most = worst.cell ? `${classes[worst.i]} is taken for ${classes[worst.j]} ${times}` : "there are none";
    const size = CELL * classes.length;
    return drawing(LEFT + size + 24, TOP + size, `Confusion matrix; the most frequent mistake: ${most}.`, parts,
      ["true class", ...classes], counts.map((row, i) => [classes[i], ...row]),
      "Rows: true class. Columns: the network's answer.");
  }

  // Bins of images, mean score, accuracy: on the diagonal the scores are honest.
  function reliability(bins, error) {
    const width = SIDE / bins.length;
    const most = Math.max(1, ...bins.map(([images]) => images));
    const filled = bins.map((bin, i) => [i, ...bin]).filter(([, images]) => images);
    const rectangles = filled.map(([i, images, , accuracy]) => shape("rect", {
      class: "right", x: 40 + width * i, y: 10 + SIDE * (1 - accuracy), width: width - 1,
      height: SIDE * accuracy, "fill-opacity": 0.3 + (0.7 * images) / most,
    }));
    const labels = [0, 50, 100].flatMap((share) => [
      shape("text", { x: 40 + 3 * share, y: SIDE + 28, "text-anchor": "middle" }, `${share}%`),
      shape("text", { x: 34, y: 14 + SIDE - 3 * share, "text-anchor": "end" }, `${share}%`),
    ]);
    const axes = shape("path", { d: `M40 10V${SIDE + 10}H${SIDE + 40}` });
    const ideal = shape("path", { class: "ideal", d: `M40 ${SIDE + 10}L${SIDE + 40} 10` });
    const range = (i) => `${Math.round((100 * i) / bins.length)}% to ${Math.round((100 * (i + 1)) / bins.length)}%`;
    return drawing(SIDE + 60, SIDE + 36,
      `Reliability diagram; scores differ from the accuracy by ${percent(error)} on average.`,
      [axes, ...rectangles, ...labels, ideal], ["score", "images", "mean score", "accuracy"],
      filled.map(([i, images, score, right]) => [range(i), count(images), percent(score), percent(right)]),
      "Horizontal: top score. Vertical: accuracy at it. Dashed: perfect calibration. Stronger color: more images.");
  }

  function mistake({ label, answer, score, png }) {
    const caption = make("figcaption", {}, `${label}, taken for ${answer}: ${percent(score)}`);
    return make("figure", {}, make("img", { alt: "", src: `data:image/png;base64,${png}` }), caption);
  }

  function sections({ classes, confusion: counts, reliability: bins, ece_after: error, mistakes }) {
    const section = (title, nodes) => make("section", {}, make("h3", {}, title), ...nodes);
    return [
      section("Accuracy of each class", bars(classes, counts)),
      section("Confusion matrix", confusion(classes, counts)),
      ...(bins ? [section("Reliability", reliability(bins, error))] : []),
      ...(mistakes.length
        ? [section("Most confident mistakes", [make("div", { class: "mistakes" }, ...mistakes.map(mistake))])] : []),
    ];
  }

  // Returns the elements that show the evaluation of a run, where `found` is null: what to do to get one.
  cnnDemo.evaluation = (run, { found, error }) => {
    if (error) return [make("p", { class: "wrong" }, error)];
    if (!found && run.startsWith("hf-")) {
      const command = make("code", {}, `python -m cnn_demo evaluate ${run}`);
      return [make("p", {}, "Not evaluated on this machine. Evaluate it from a terminal: ", command)];
    }
    if (!found) return [make("p", {}, "Not tested yet: a run is tested when it finishes.")];
    const { accuracy, accuracy_flip: flip, pictures, ece_after: after, ece_before: before } = found;
    const flipped = flip == null ? "" : ` (${percent(flip)} with flip averaging)`;
    const calibration = `Calibration error ${percent(after)} (${percent(before)} before temperature scaling).`;
    const summary = make("p", {}, "Test accuracy ", make("strong", {}, percent(accuracy)),
      `${flipped} on ${count(pictures)} images. ${calibration}`);
    return [summary, make("div", { class: "evaluation" }, ...sections(found))];
  };

  // The evaluation on the Classify tab; the value is {run, found}, {error} or, without a checkpoint, empty.
  cnnDemo.showEvaluation = (root, props, watch) => {
    const draw = () => {
      const { run, error } = props.value || {};
      const shown = run || error ? cnnDemo.evaluation(run, props.value) : [];
      root.querySelector(".evaluation-view").replaceChildren(...shown);
    };
    watch("value", draw);
    draw();
  };
})();
