// What an answer rests on: heat over the picture for a class, asked from the server where the visitor wants it.
cnnDemo.showHeat = (root, server, watch) => {
  const { make, radios, store } = cnnDemo;
  const METHODS = { "": "hide", "grad-cam": "Grad-CAM", occlusion: "occlusion" };
  const LIMITS = "It shows where, not what the network recognizes there, and it can look convincing when the answer " +
    "is wrong: some methods draw much the same map for random weights (Adebayo et al. 2018; Grad-CAM does not).";
  let method = store("cnn-demo-heat");
  let label = ""; // the class, "" for the first of each answer

  function draw() {
    label = "";
    const choose = (name) => show((method = store("cnn-demo-heat", name)));
    const choice = radios("What the answer rests on", "heat", METHODS, method, choose);
    root.querySelector(".heat-choice")?.replaceChildren(choice);
    show();
  }

  async function show() {
    if (!root.offsetParent) return; // another tab of the page is open
    for (const panel of root.querySelectorAll(".answer")) {
      const bars = [...panel.querySelectorAll(".scores button")];
      const chosen = label || bars[0].textContent;
      for (const bar of bars) bar.setAttribute("aria-pressed", String(Boolean(method) && bar.textContent === chosen));
      const picture = root.querySelector(".heat-choice").dataset.pixels;
      await fill(panel.querySelector(".heat"), { name: panel.dataset.name, picture, label: chosen, method });
    }
  }

  async function fill(place, asked) {
    const key = method && JSON.stringify(asked);
    if ((place.dataset.key || "") === key) return;
    place.dataset.key = key;
    if (!method) return place.replaceChildren();
    const lost = { error: "The server did not answer; try again." };
    const answer = (await server.heat({ ...asked, owner: cnnDemo.owner() }).catch(() => null)) || lost;
    if (place.dataset.key !== key) return; // something else was chosen meanwhile
    if (answer.error) place.dataset.key = "failed";
    const image = answer.png && make("img", { alt: "", src: `data:image/png;base64,${answer.png}` });
    const text = make("p", { role: "status", class: answer.error ? "wrong" : "" }, answer.error || answer.text);
    place.replaceChildren(...(image ? [image, make("div", {}, text, make("p", { class: "quiet" }, LIMITS))] : [text]));
  }

  root.addEventListener("click", (event) => {
    const bar = event.target.closest(".scores tr")?.querySelector("button");
    if (!bar) return;
    label = bar.textContent;
    if (method) show();
    else root.querySelectorAll(".heat-choice input")[1].click(); // who chooses a class wants to see its heat
  });
  watch("value", draw);
  new ResizeObserver(show).observe(root);
  draw();
};
