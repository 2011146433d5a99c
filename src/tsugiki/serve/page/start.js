// Sets the theme and the language before anything is drawn, so that neither is seen to change.
(() => {
  const root = document.documentElement;
  const theme = localStorage.getItem("tsugiki.theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const asked = new URLSearchParams(location.search).get("lang"); // by `tsugiki serve --lang`
  const chosen = asked ?? localStorage.getItem("tsugiki.lang");
  const own = navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";
  root.lang = chosen === "ja" || chosen === "en" ? chosen : own;
})();
