// Reads the URL and a header, and answers a different text each time, so that no server gains from
// a cached answer.
let count = 0;
export default {
  fetch(request) {
    const { pathname } = new URL(request.url);
    count += 1;
    return new Response(`hello ${pathname} from ${request.headers.get("user-agent")}, call ${count}`);
  },
};
