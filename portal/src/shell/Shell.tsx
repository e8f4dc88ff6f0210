/** The frame of every page: where one can go, who one is, and whether the platform answers. */
import { useEffect, useRef, useSyncExternalStore } from "react";
import { useQuery } from "@tanstack/react-query";
import { Link as RouterLink, Outlet, useRouterState } from "@tanstack/react-router";
import { Menu, MenuItem, MenuTrigger, Popover } from "react-aria-components";
import { whoami } from "../api/queries";
import { session } from "../auth/session";
import { Button, Dialog } from "../ui/controls";
import { chooseTheme, useTheme, type Theme } from "../ui/theme";
import { ConnectionBar } from "./ConnectionBar";
import { Mark } from "./Mark";

const PLACES = [
  { to: "/sites", label: "Sites" },
  { to: "/clusters", label: "Clusters" },
  { to: "/order", label: "Order" },
] as const;

export function Shell() {
  const main = useRef<HTMLElement>(null);
  const path = useRouterState({ select: (state) => state.location.pathname });
  useEffect(() => {
    window.scrollTo(0, 0);
  }, [path]);
  return (
    <>
      <a className="skip" href="#main">
        Go to the content
      </a>
      <header className="top">
        <RouterLink to="/" className="brand" aria-label="Dflare: start">
          <Mark />
          <span aria-hidden="true">Dflare</span>
        </RouterLink>
        <nav aria-label="Main">
          {PLACES.map(({ to, label }) => (
            <RouterLink key={to} to={to} className="place" activeProps={{ className: "place here" }}>
              {label}
            </RouterLink>
          ))}
        </nav>
        <div className="top-end">
          <ConnectionBar />
          <ThemeButton />
          <Account />
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        <Outlet />
      </main>
      <LoginEnded />
    </>
  );
}

const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
const THEME_SIGNS: Record<Theme, string> = { system: "◐", light: "☼", dark: "☾" };

function ThemeButton() {
  const theme = useTheme();
  return (
    <Button
      kind="quiet"
      className="icon"
      aria-label={`Colours: ${theme}. Change to ${NEXT[theme]}`}
      onPress={() => chooseTheme(NEXT[theme])}
    >
      <span aria-hidden="true">{THEME_SIGNS[theme]}</span>
    </Button>
  );
}

function Account() {
  const { data } = useQuery(whoami);
  return (
    <MenuTrigger>
      <Button kind="quiet">{data?.name ?? "…"}</Button>
      <Popover className="popover" placement="bottom end">
        <Menu className="list-box" aria-label="Account">
          <MenuItem
            className="list-item"
            onAction={() => window.open("/v1/docs", "_blank", "noopener")}
          >
            API
          </MenuItem>
          <MenuItem className="list-item" onAction={() => void session.logOut()}>
            Log out
          </MenuItem>
        </Menu>
      </Popover>
    </MenuTrigger>
  );
}

/** A login ends while a page is open: what was typed is kept for the way back. */
function LoginEnded() {
  const ended = useSyncExternalStore(session.subscribe, () => session.ended);
  return (
    <Dialog title="Your login has ended" role="alertdialog" isOpen={ended}>
      <p>Log in again to go on. You come back to this page, and what you typed is kept.</p>
      <div className="dialog-actions">
        <Button
          kind="primary"
          onPress={() => void session.logIn(location.pathname + location.search)}
        >
          Log in again
        </Button>
      </div>
    </Dialog>
  );
}
