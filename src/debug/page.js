'use strict';
// Fetches the page again and replaces its content. The scroll position stays.
const pause = 3000;
const lost = document.getElementById('lost');
let since = null;
async function refresh() {
  if (!document.hidden && String(getSelection()) === '') {
    try {
      const answer = await fetch(location.href, { headers: { Accept: 'text/html' }, cache: 'no-store' });
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').querySelector('main');
      if (!fresh) throw new Error('no page');
      const [x, y] = [scrollX, scrollY];
      document.querySelector('main').replaceWith(document.adoptNode(fresh));
      scrollTo(x, y);
      since = null;
      lost.hidden = true;
      document.documentElement.dataset.refreshed = String(Number(document.documentElement.dataset.refreshed || 0) + 1);
    } catch (error) {
      since = since || new Date();
      lost.textContent = 'No answer since ' + since.toLocaleTimeString() + ': the values below are outdated.';
      lost.hidden = false;
    }
  }
  setTimeout(refresh, pause);
}
setTimeout(refresh, pause);
