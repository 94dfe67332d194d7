export default {
  fetch(request, env) {
    const { pathname } = new URL(request.url);
    return new Response(`${env.GREETING} from @NAME@, you asked for ${pathname}\n`);
  },
};
