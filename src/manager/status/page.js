"use strict";
(() => {
  const live = document.getElementById("live");
  const say = (text) => { live.textContent = text; };
  const refresh = async () => {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const scrolled = [...document.querySelectorAll(".decisions")].map((list) => list.scrollTop);
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
      document.querySelectorAll(".decisions").forEach((list, at) => { list.scrollTop = scrolled[at] || 0; });
      document.getElementById("now").textContent = fresh.getElementById("now").textContent;
      say("· live");
    } catch (error) {
      say("· the manager does not answer");
    }
    setTimeout(refresh, document.hidden ? 15000 : 3000);
  };
  say("· live");
  setTimeout(refresh, 3000);
})();
