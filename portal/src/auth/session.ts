/**
 * Who is logged in, in all tabs of this browser.
 *
 * The access token lives in memory for its quarter of an hour. The refresh token, which is used up
 * by each renewal, is shared by the tabs: they take turns under a lock, so that no tab ever uses one
 * that another has used (the issuer would end the login for all of them).
 */
import { LoggedOut } from "../api/problem";
import { beginLogin, renewed, revoke, type Tokens } from "./oauth";

const REFRESH_KEY = "dflare.refresh";
const LOCK = "dflare.refresh";
const EARLY_MS = 30_000;

type Listener = () => void;

class Session {
  #access = "";
  #expiresAt = 0;
  #ended = false;
  #renewing: Promise<string> | null = null;
  readonly #listeners = new Set<Listener>();

  constructor() {
    addEventListener("storage", (event) => {
      if (event.key === REFRESH_KEY && event.newValue === null) this.#end();
    });
  }

  /** Whether the login is over; the page then asks to log in again. */
  get ended(): boolean {
    return this.#ended;
  }

  subscribe = (listener: Listener): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  keep(tokens: Tokens): void {
    this.#access = tokens.access;
    this.#expiresAt = tokens.expiresAt;
    if (tokens.refresh) localStorage.setItem(REFRESH_KEY, tokens.refresh);
    this.#ended = false;
    this.#tell();
  }

  hasLogin(): boolean {
    return localStorage.getItem(REFRESH_KEY) !== null;
  }

  /** A token that still serves; renews it where it does not. */
  async token(options: { renew?: string } = {}): Promise<string> {
    const fresh = Date.now() < this.#expiresAt - EARLY_MS;
    if (this.#access && fresh && options.renew !== this.#access) return this.#access;
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = null;
    });
    return this.#renewing;
  }

  async logIn(returnTo: string): Promise<void> {
    await beginLogin(returnTo);
  }

  async logOut(): Promise<void> {
    const refresh = localStorage.getItem(REFRESH_KEY);
    localStorage.removeItem(REFRESH_KEY);
    sessionStorage.clear();
    if (refresh) await revoke(refresh);
    location.assign("/login");
  }

  async #renew(): Promise<string> {
    return navigator.locks.request(LOCK, async () => {
      const refresh = localStorage.getItem(REFRESH_KEY);
      const tokens = refresh ? await renewed(refresh) : null;
      if (!tokens) {
        localStorage.removeItem(REFRESH_KEY);
        this.#end();
        throw new LoggedOut();
      }
      this.keep(tokens);
      return tokens.access;
    });
  }

  #end(): void {
    this.#access = "";
    this.#expiresAt = 0;
    this.#ended = true;
    this.#tell();
  }

  #tell(): void {
    for (const listener of this.#listeners) listener();
  }
}

export const session = new Session();
