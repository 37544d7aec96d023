// gradio takes its language from the browser; a link of the page has the last word, from then on.
{
  const asked = new URLSearchParams(location.search).get("lang");
  if (asked) localStorage.setItem("tilewise-language", asked);
  const chosen = localStorage.getItem("tilewise-language") || navigator.language;
  const language = chosen.startsWith("zh") ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", { get: () => language });
  document.cookie = `tilewise-language=${language}; path=/; SameSite=Lax`; // for what the server says of an upload
}
// Texts of the chat come with signs without width, so that no HTML begins in them (markup.py). What is text by now, and
// what is copied, goes without. Links say where they go, whatever they are called.
{
  const bare = (text) => text.replace(/([<![`~ \t])\u2060/g, "$1");
  const tidy = (message) => {
    const texts = document.createTreeWalker(message, NodeFilter.SHOW_TEXT);
    let before = ""; // code is coloured in pieces: a sign may begin the next one
    while (texts.nextNode()) {
      const text = texts.currentNode;
      if (text.data.includes("\u2060")) text.data = bare(before + text.data).slice(before.length);
      before = text.data.slice(-1) || before;
    }
    for (const link of message.querySelectorAll("a[href]")) {
      if (link.previousSibling?.data?.endsWith("<") && link.textContent.endsWith(">") && link.href.endsWith("%3E")) {
        // <https://host/path>, of which gradio takes the last sign for a part of the address
        link.href = link.getAttribute("href").slice(0, -3);
        link.textContent = link.textContent.slice(0, -1);
        link.after(">");
      }
      link.target = "_blank";
      link.rel = "noopener noreferrer nofollow";
      if (link.textContent !== link.href) link.dataset.where = link.host || link.href;
    }
    for (const named of message.querySelectorAll(".md [id]")) named.removeAttribute("id");
  };
  const watch = new MutationObserver((changes) => {
    const messages = new Set();
    for (const { target } of changes) {
      const element = target.nodeType === Node.ELEMENT_NODE ? target : target.parentElement;
      const message = element?.closest(".message");
      if (message) messages.add(message);
      else element?.querySelectorAll(".message").forEach((inner) => messages.add(inner));
    }
    messages.forEach(tidy);
  });
  watch.observe(document, { childList: true, subtree: true, characterData: true });

  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (write) navigator.clipboard.writeText = (text) => write(bare(text));
}
