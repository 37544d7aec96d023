// gradio takes its language from the browser; a link of the page has the last word, from then on.
{
  const asked = new URLSearchParams(location.search).get("lang");
  if (asked) localStorage.setItem("tilewise-language", asked);
  const chosen = localStorage.getItem("tilewise-language") || navigator.language;
  const language = chosen.startsWith("zh") ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", { get: () => language });
}
