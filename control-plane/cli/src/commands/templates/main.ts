interface Env {
  GREETING: string;
}

export default {
  fetch(request: Request, env: Env): Response {
    const { pathname } = new URL(request.url);
    return new Response(`${env.GREETING} from @NAME@, you asked for ${pathname}\n`);
  },
};
