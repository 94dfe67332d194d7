// Reads the URL and a header, and answers another text each time: a constant one would flatter a server that keeps it.
let count = 0;
export default {
  fetch(request) {
    const { pathname } = new URL(request.url);
    count += 1;
    return new Response(`hello ${pathname} from ${request.headers.get("user-agent")}, call ${count}`);
  },
};
