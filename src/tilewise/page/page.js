// gradio takes its language from the browser; a link of the page has the last word, from then on.
{
  const asked = new URLSearchParams(location.search).get("lang");
  if (asked) localStorage.setItem("tilewise-language", asked);
  const wanted = localStorage.getItem("tilewise-language") || navigator.language;
  const language = wanted.startsWith("zh") ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", { get: () => language });
  document.cookie = `tilewise-language=${language}; path=/; SameSite=Lax`; // for what the server says of an upload
}
// Texts of the chat come with signs, so that no HTML begins in them (markup.py). What is shown, edited or copied goes
// without. Links say where they go, whatever they are called.
{
  const signs = /\uFDD0|%EF%B7%90/gi; // in an address they may be escaped
  const directions = /[\u202A-\u202E\u2066-\u2069]/g; // turn the order of what follows around
  const restore = (text) => text.replaceAll("\uFDD0", "");

  const tidyTexts = (message) => {
    const texts = document.createTreeWalker(message, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode;
      let shown = restore(text.data);
      if (text.parentElement.closest("a")) shown = shown.replace(directions, "");
      // NOTE: an assignment is a change to the observer, even of an equal text.
      if (shown !== text.data) text.data = shown;
    }
    for (const read of message.querySelectorAll("[aria-label*='\uFDD0']")) read.ariaLabel = restore(read.ariaLabel);
    for (const box of message.querySelectorAll("textarea")) {
      const shown = restore(box.value);
      if (shown === box.value) continue;
      box.value = shown;
      box.dispatchEvent(new Event("input", { bubbles: true })); // gradio keeps a copy
    }
  };
  const tidyLink = (link) => {
    for (const name of ["href", "title"]) {
      const value = link.getAttribute(name);
      if (value) link.setAttribute(name, value.replace(signs, ""));
    }
    if (link.previousSibling?.data?.endsWith("<") && link.textContent.endsWith(">") && link.href.endsWith("%3E")) {
      // <https://host/path>, of which gradio takes the last sign for a part of the address
      link.href = link.getAttribute("href").slice(0, -3);
      link.textContent = link.textContent.slice(0, -1);
      link.after(">");
    }
    // gradio has checked the address while a sign may have hidden its scheme.
    if (!["http:", "https:", "mailto:"].includes(link.protocol)) link.removeAttribute("href");
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    if (link.textContent !== link.href || link.username || link.password) link.dataset.where = link.host || link.href;
  };
  const tidied = new WeakSet(); // links
  const changed = new Set(); // messages
  const tidyChanged = () => {
    const messages = [...changed];
    changed.clear();
    for (const message of messages) {
      tidyTexts(message);
      for (const link of message.querySelectorAll("a[href]")) {
        if (!tidied.has(link)) tidyLink(link);
        tidied.add(link);
      }
      for (const named of message.querySelectorAll(".md [id]")) named.removeAttribute("id");
    }
    watch.takeRecords(); // of what was changed here
  };
  const watch = new MutationObserver((changes) => {
    const isWaiting = changed.size > 0;
    for (const { target } of changes) {
      const element = target.nodeType === Node.ELEMENT_NODE ? target : target.parentElement;
      const message = element?.closest(".message");
      if (message) changed.add(message);
      else element?.querySelectorAll(".message").forEach((inner) => changed.add(inner));
    }
    if (changed.size && !isWaiting) requestAnimationFrame(tidyChanged); // before it is painted
  });
  watch.observe(document, { childList: true, subtree: true, characterData: true });

  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (write) navigator.clipboard.writeText = (text) => write(restore(text));
  // Over plain HTTP there is no such clipboard: gradio copies from a text box of its own.
  document.addEventListener("copy", (event) => {
    const box = document.activeElement;
    const isBox = box instanceof HTMLTextAreaElement;
    const text = isBox ? box.value.slice(box.selectionStart, box.selectionEnd) : String(getSelection());
    if (!text.includes("\uFDD0")) return;
    event.clipboardData.setData("text/plain", restore(text));
    event.preventDefault();
  }, true);
}
// A page whose heartbeat broke, as after a nap of the laptop, opens another: its pictures go with the last one. It is not
// opened before, since a browser has six connections to a host for all of its tabs.
{
  let heartbeat;
  const holdSession = async () => {
    const answer = await fetch("tilewise/session").catch(() => null);
    if (!answer?.ok || (await answer.text()) !== "closed") return;
    heartbeat?.close();
    heartbeat = new EventSource(`gradio_api/heartbeat/${Math.random().toString(36).slice(2)}`);
  };
  setInterval(holdSession, 30_000);
  addEventListener("online", holdSession);
  document.addEventListener("visibilitychange", holdSession);
}
