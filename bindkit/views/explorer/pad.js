// Keys for the chosen patch, and lines of text that screen readers follow. The rest of the explorer is ipywidgets.

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const KEYS = new Set([...Object.keys(STEPS), "[", "]", ",", "."]);
const FAR = 5;
// Milliseconds: while keys follow each other faster, the kernel is told only where the patch comes to rest.
const REST = 120;
const MOST_BYTES = 10_000_000;
// Pixels: around the explorer, and by how much the room may change before maps are drawn at another size, such as a line
// of the status line.
const MARGIN = 12, SLACK = 24;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function render({ model, el }) {
  const place = make("b", {}), status = make("p", { class: "status", role: "status", "aria-live": "polite" });
  const hint = make("span", { class: "hint" });
  hint.innerHTML = "<kbd>←</kbd><kbd>↑</kbd><kbd>↓</kbd><kbd>→</kbd> move it, <kbd>Shift</kbd> by five · "
    + "<kbd>[</kbd><kbd>]</kbd> layer · <kbd>,</kbd><kbd>.</kbd> image";
  const keys = make("div", {
    class: "keys", tabindex: "0", role: "application", "aria-roledescription": "patch chooser",
  }, place, hint);
  const message = make("p", { class: "message", role: "alert" });
  const busy = make("p", { class: "busy", role: "status" });
  el.classList.add("bindkit-pad");
  el.append(busy, keys, status, message);

  const show = () => {
    for (const [line, text] of [[status, model.get("status")], [message, model.get("message")]]) {
      if (line.textContent !== text) line.textContent = text;
      line.hidden = !text;
    }
    message.classList.toggle("good", model.get("good"));
    const words = model.get("busy");
    busy.replaceChildren(...(words ? [make("progress", { "aria-label": words }), words] : []));
    busy.hidden = !words;
    // What buttons cause is said beside them.
    const at = model.get("beside") && root()?.querySelector(`.bindkit-beside-${model.get("beside")}`) || el;
    if (message.parentNode !== at) at.append(busy, message);
  };
  const root = () => el.closest(".bindkit-explorer");
  model.on("change", show);

  const onKey = (event) => {
    if (!KEYS.has(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.key in STEPS) step(...STEPS[event.key].map((way) => (event.shiftKey ? FAR : 1) * way));
    else { rest(); model.send({ key: event.key }); }
  };
  keys.addEventListener("keydown", onKey);

  // The chosen patch moves here at once, with its map where that can be answered; the kernel is told where it comes to
  // rest, or, where only the kernel knows the map, one patch at a time. What the kernel says counts once it has heard the
  // last that it was told, which it shows by its mark.
  let chosen = [], pending = null, soon = 0, answered = false, unheard = 0, waiting = 0;
  const tell = (panel, { down, across }) => {
    unheard = Math.random();
    waiting = performance.now() + 300;
    model.send({ panel, down, across, mark: unheard });
  };
  const rest = () => {
    if (!pending) return;
    clearTimeout(soon);
    const [panel, at] = pending;
    pending = null;
    tell(panel, at);
  };
  const later = (panel, at) => {
    answered = redrawn(panel, at);
    pending = [panel, at];
    clearTimeout(soon);
    soon = setTimeout(rest, answered ? REST : Math.max(0, waiting - performance.now()));
  };
  const redrawn = (panel, at) => {
    const told = figure && restyled(answers, panel, at);
    if (told) redraw(figure, root().querySelector(".js-plotly-plot"), told);
    return Boolean(told);
  };
  const step = (down, across) => {
    const [row, col, rows, cols] = chosen, within = (at, n) => Math.min(Math.max(at, 0), n - 1);
    const next = [within(row + down, rows), within(col + across, cols), rows, cols];
    if (!chosen.length || (next[0] === row && next[1] === col)) return;
    chosen = next;
    showPatch();
    later(1, { down: (next[0] + 0.5) / rows, across: (next[1] + 0.5) / cols });
  };
  const learnPatch = () => {
    if (model.get("heard") === unheard) unheard = waiting = 0;
    if (unheard) return;
    if (pending && !answered) rest();
    else if (!pending) { chosen = model.get("patch"); showPatch(); }
  };
  const showPatch = () => {
    const words = chosen.length ? `row ${chosen[0]}, column ${chosen[1]}` : "";
    place.textContent = words;
    keys.setAttribute("aria-label", `Chosen patch: ${words}. Arrow keys move it.`);
  };
  model.on("change:patch change:heard", learnPatch);

  // A patch counts as chosen when it is pressed, which is a tenth of a second before Plotly calls it a click.
  const panelOf = (area) => +(/^x(\d*)/.exec(area.dataset.subplot)?.[1] || 1);
  const cellsOf = (plot, number) => plot.data.find(({ type, visible, xaxis }) =>
    type === "heatmap" && visible !== false && (xaxis ?? "x") === (number > 1 ? `x${number}` : "x"))?.z;
  let last = "", held = null;
  const choose = (event, area, pressed) => {
    const { left, top, width, height } = area.getBoundingClientRect();
    const number = panelOf(area), cells = cellsOf(area.closest(".js-plotly-plot"), number);
    if (!cells?.length) return;
    const share = (way, length) => Math.min(Math.max(way / length, 0), 1 - 1e-9), rows = cells.length, cols = cells[0].length;
    const at = { down: share(event.clientY - top, height), across: share(event.clientX - left, width) };
    const row = Math.floor(at.down * rows), col = Math.floor(at.across * cols), now = `${number} ${row} ${col}`;
    if (!pressed && now === last) return;
    last = now;
    if (number === 1) { chosen = [row, col, rows, cols]; showPatch(); }
    if (!pressed) { later(number, at); return; }
    rest();
    tell(number, at);
    redrawn(number, at);
  };
  let answers = [], figure = null;
  const learn = () => { answers = model.get("answers").map(unpacked); };
  const meet = async () => { figure = model.get("figure") ? await model.widget_manager.get_model(model.get("figure")) : null; };
  model.on("change:answers", learn);
  model.on("change:figure", meet);
  learn();
  meet();
  learnPatch();
  // Plotly lays a cover over the whole page while a button is down: a drag is followed there.
  const onPress = (event) => {
    const area = event.target.closest?.(".js-plotly-plot .nsewdrag");
    if (!area || event.button > 0) return;
    held = event.pointerType === "touch" ? null : area;
    choose(event, area, true);
  };
  const onDrag = (event) => {
    if (!held) return;
    if (event.buttons & 1) choose(event, held, false);
    else onRelease();
  };
  const onRelease = () => {
    if (!held) return;
    held = null;
    rest();
    takeFocus();
  };

  // What is typed in the explorer is not meant for the notebook, whose commands are single letters and arrows.
  const keepKeys = (event) => {
    if (!event.ctrlKey && !event.metaKey && !["Escape", "Tab"].includes(event.key) && !(event.key === "Enter" && event.shiftKey))
      event.stopPropagation();
  };
  const takeFocus = () => {
    // Later, so that it does not keep the click waiting; not if a control was taken up meanwhile.
    const before = document.activeElement;
    setTimeout(() => {
      const now = document.activeElement;
      if (now === before || !root()?.contains(now)) keys.focus({ preventScroll: true });
    }, 120);
  };
  // Jupyter drops larger messages without a word.
  let upload = null;
  const refuse = () => {
    const large = upload.get("value").find(({ size }) => size > MOST_BYTES);
    if (!large) return;
    upload.set("value", []);
    model.send({ refused: large.name, bytes: large.size });
  };
  const guard = async () => {
    upload = await model.widget_manager.get_model(model.get("upload"));
    upload.on("change:value", refuse);
  };
  guard();
  // The handles of ipywidgets' sliders have no name of their own; they take that of the label beside them.
  const name = () => root()?.querySelectorAll(".widget-slider").forEach((slider) => {
    const label = slider.querySelector(".widget-label")?.textContent, value = slider.querySelector(".widget-readout") ?? slider.parentElement.querySelector(".bindkit-limit");
    slider.querySelectorAll(".noUi-handle").forEach((handle) => {
      handle.setAttribute("aria-label", label ?? "");
      handle.setAttribute("aria-valuetext", value?.textContent ?? "");
    });
    if (!value?.isContentEditable) return;
    value.setAttribute("role", "textbox");
    value.setAttribute("aria-label", `${label}, as a number`);
  });
  // The button to open a file counts files; here one is as good as none.
  const uncount = () => root()?.querySelectorAll("button.widget-upload, .widget-upload button").forEach((button) => {
    for (const part of button.childNodes) if (part.nodeType === 3 && / \(\d+\)$/.test(part.data)) part.data = part.data.replace(/ \(\d+\)$/, "");
  });
  // Buttons that unfold a part of the controls say so.
  const unfold = () => root()?.querySelectorAll(".bindkit-fold > .widget-toggle-button").forEach((button) => {
    const open = String(button.classList.contains("mod-active"));
    if (button.getAttribute("aria-expanded") !== open) button.setAttribute("aria-expanded", open);
  });
  const tidy = () => { name(); uncount(); unfold(); };

  // Plotly's widget reports every move of the mouse to the kernel, which has no use for it and keeps clicks waiting; and
  // clicks, which have been told when they were pressed.
  const quiet = (plot) => {
    for (const name of ["plotly_hover", "plotly_unhover", "plotly_click"]) plot.removeAllListeners?.(name);
    if (plot.dataset.bindkit) return;
    plot.dataset.bindkit = "quiet";
    // Plotly may leave the clickable area of a map that is gone above the others.
    const hide = () => plot.querySelectorAll(".nsewdrag").forEach((area) => {
      const gone = !cellsOf(plot, panelOf(area));
      if (gone !== (area.style.display === "none")) area.style.display = gone ? "none" : "";
    });
    plot.on?.("plotly_afterplot", hide);
    hide();
  };
  const onPlot = ({ detail }) => { if (root()?.contains(detail.element)) quiet(detail.element); };
  document.addEventListener("plotlywidget-after-render", onPlot);

  const onPage = [["pointermove", onDrag], ["pointerup", onRelease], ["pointercancel", onRelease]];
  let observer, watcher, width = 0, height = 0, timer, frame;
  // Maps, keys and status are seen at once: the maps have what the others leave of the notebook's height.
  const measure = () => {
    const holder = root()?.querySelector(".bindkit-maps"), stage = root()?.querySelector(".bindkit-stage");
    if (!holder?.clientWidth) return;
    const seen = root().closest(".jp-WindowedPanel-outer, .jp-LinkedOutputView")?.clientHeight ?? innerHeight;
    const now = [holder.clientWidth, Math.max(0, seen - (stage.clientHeight - holder.clientHeight) - MARGIN)];
    if (Math.abs(now[0] - width) < 2 && Math.abs(now[1] - height) < SLACK) return;
    [width, height] = now;
    clearTimeout(timer);
    timer = setTimeout(() => model.send({ width, height }), 80);
  };
  const attached = () => {
    const holder = root()?.querySelector(".bindkit-maps");
    if (!el.isConnected || !holder) { frame = requestAnimationFrame(attached); return; }
    root().addEventListener("keydown", keepKeys);
    root().addEventListener("pointerdown", onPress, true);
    for (const [name, act] of onPage) document.addEventListener(name, act, true);
    watcher = new MutationObserver(tidy);
    watcher.observe(root(), { childList: true, subtree: true, attributeFilter: ["class"] });
    observer = new ResizeObserver(measure);
    observer.observe(holder);
    addEventListener("resize", measure);
    root().querySelectorAll(".js-plotly-plot").forEach(quiet);
    tidy();
    show();
  };
  attached();
  return () => {
    document.removeEventListener("plotlywidget-after-render", onPlot);
    for (const [name, act] of onPage) document.removeEventListener(name, act, true);
    observer?.disconnect();
    removeEventListener("resize", measure);
    watcher?.disconnect();
    clearTimeout(timer);
    rest();
    cancelAnimationFrame(frame);
    upload?.off("change:value", refuse);
    model.off("change", show);
    model.off("change:patch change:heard", learnPatch);
    model.off("change:answers", learn);
    model.off("change:figure", meet);
  };
}

export default { render };
