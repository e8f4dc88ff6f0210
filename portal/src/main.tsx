import { StrictMode, type ReactNode } from "react";
import { createRoot } from "react-dom/client";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import "@fontsource-variable/inter";
import "@fontsource-variable/jetbrains-mono";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/controls.css";
import "./styles/pages.css";
import "./styles/site.css";
import "./styles/cluster.css";
import "./styles/order.css";
import { isPassing, LoggedOut } from "./api/problem";
import { finishLogin, isCallback, LoginFailed } from "./auth/oauth";
import { session } from "./auth/session";
import { follow } from "./live/fold";
import { InsecurePage, LoginPage } from "./pages/LoginPage";
import { router } from "./shell/router";
import { applyTheme } from "./ui/theme";

const client = new QueryClient({
  defaultOptions: {
    queries: {
      // Nobody answers for a while: go on asking, the shell says so. A refusal is no such thing.
      retry: (_, error) => isPassing(error),
      retryDelay: (tries) => Math.min(300 * 2 ** tries, 3_000),
      networkMode: "always",
      refetchOnWindowFocus: false,
      staleTime: 2_000,
    },
    mutations: {
      networkMode: "always",
      retryDelay: (tries) => Math.min(300 * 2 ** tries, 3_000),
    },
  },
});

const element = document.getElementById("root");
if (!element) throw new Error("the document has no root");
const page = createRoot(element);
applyTheme();

function show(content: ReactNode): void {
  page.render(<StrictMode>{content}</StrictMode>);
}

/** Who is logged in is found out before anything is shown; others are sent to log in. */
async function begin(): Promise<void> {
  if (!isSecureContext) {
    show(<InsecurePage />);
    return;
  }
  if (isCallback(location)) {
    const { tokens, returnTo } = await finishLogin(location.search);
    session.keep(tokens);
    history.replaceState(null, "", returnTo);
  } else if (location.pathname === "/login") {
    show(<LoginPage />);
    return;
  } else if (!(await mayEnter())) {
    await session.logIn(location.pathname + location.search);
    return;
  }
  follow(client);
  show(
    <QueryClientProvider client={client}>
      <RouterProvider router={router} />
    </QueryClientProvider>,
  );
}

/** Whether there is a login. While nobody can say, the pages say that themselves. */
async function mayEnter(): Promise<boolean> {
  if (!session.hasLogin()) return false;
  try {
    await session.token();
    return true;
  } catch (error) {
    return !(error instanceof LoggedOut);
  }
}

begin().catch((error: unknown) => {
  const reason = error instanceof LoginFailed ? error.message : "The platform does not answer.";
  show(<LoginPage problem={`${reason} Try again.`} />);
});
