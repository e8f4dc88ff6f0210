/**
 * Logging in as a public client: code with PKCE at the platform's own issuer.
 * Sources: RFC 6749 section 4.1, RFC 7636, RFC 9207, RFC 7009.
 */
import { Problem, problemOf, Unreachable } from "../api/problem";

const CLIENT_ID = "dflare-portal";
const SCOPE = "openid profile offline_access";
const CALLBACK_PATH = "/login/callback";
const ATTEMPT_KEY = "dflare.login-attempt";
const LOOPBACK = ["127.0.0.1", "[::1]"];

export interface Tokens {
  access: string;
  refresh: string;
  /** Milliseconds of the epoch. */
  expiresAt: number;
}

interface Attempt {
  verifier: string;
  state: string;
  returnTo: string;
}

/** The issuer's answer cannot be used; says why. */
export class LoginFailed extends Error {}

export function isCallback(location: Location): boolean {
  return location.pathname === CALLBACK_PATH;
}

/** Leave for the issuer's login page, to come back to `returnTo`. */
export async function beginLogin(returnTo: string): Promise<void> {
  const issuer = await issuerOrigin();
  if (issuer !== location.origin && !LOOPBACK.includes(location.hostname)) {
    // Logins lead back to one address alone; here it is reached by another name.
    location.replace(issuer + returnTo);
    return;
  }
  const attempt: Attempt = { verifier: randomText(48), state: randomText(24), returnTo };
  sessionStorage.setItem(ATTEMPT_KEY, JSON.stringify(attempt));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(attempt.verifier));
  const query = new URLSearchParams({
    response_type: "code",
    client_id: CLIENT_ID,
    redirect_uri: redirectUri(),
    scope: SCOPE,
    state: attempt.state,
    code_challenge: base64url(new Uint8Array(digest)),
    code_challenge_method: "S256",
  });
  location.assign(`/oauth/authorize?${query}`);
}

/** Turn the redirect that came back into tokens, and say where the person wanted to go. */
export async function finishLogin(search: string): Promise<{ tokens: Tokens; returnTo: string }> {
  const answer = new URLSearchParams(search);
  const kept = sessionStorage.getItem(ATTEMPT_KEY);
  if (!kept) {
    throw new LoginFailed("This browser tab did not begin the login that came back to it.");
  }
  const attempt = JSON.parse(kept) as Attempt;
  if (answer.get("state") !== attempt.state) {
    throw new LoginFailed("The answer belongs to another login.");
  }
  const error = answer.get("error");
  if (error === "access_denied") throw new LoginFailed("The login was cancelled.");
  const code = answer.get("code");
  if (error || !code) {
    throw new LoginFailed(answer.get("error_description") ?? error ?? "No code came back.");
  }
  const iss = answer.get("iss");
  if (iss !== null && iss !== (await issuerOf())) {
    throw new LoginFailed("The answer came from another issuer.");
  }
  const tokens = await tokensFor({
    grant_type: "authorization_code",
    code,
    redirect_uri: redirectUri(),
    code_verifier: attempt.verifier,
  });
  sessionStorage.removeItem(ATTEMPT_KEY);
  return { tokens, returnTo: attempt.returnTo };
}

/** New tokens for a refresh token, which is used up by this. Null where it serves no more. */
export async function renewed(refresh: string): Promise<Tokens | null> {
  try {
    return await tokensFor({ grant_type: "refresh_token", refresh_token: refresh });
  } catch (error) {
    if (error instanceof Problem && [400, 401].includes(error.status)) return null;
    throw error;
  }
}

/** End the login at the issuer; that it does not answer keeps nobody logged in here. */
export async function revoke(refresh: string): Promise<void> {
  const form = { token: refresh, token_type_hint: "refresh_token", client_id: CLIENT_ID };
  await fetch("/oauth/revoke", { method: "POST", body: new URLSearchParams(form) }).catch(() => null);
}

async function tokensFor(form: Record<string, string>): Promise<Tokens> {
  const askedAt = Date.now();
  let response: Response;
  try {
    response = await fetch("/oauth/token", {
      method: "POST",
      body: new URLSearchParams({ client_id: CLIENT_ID, ...form }),
    });
  } catch (error) {
    throw new Unreachable(error);
  }
  if (!response.ok) throw await problemOf(response);
  const document = (await response.json()) as {
    access_token: string;
    refresh_token?: string;
    expires_in?: number;
  };
  return {
    access: document.access_token,
    refresh: document.refresh_token ?? "",
    expiresAt: askedAt + (document.expires_in ?? 300) * 1000,
  };
}

async function issuerOf(): Promise<string> {
  try {
    const response = await fetch("/.well-known/openid-configuration");
    if (!response.ok) throw await problemOf(response);
    return ((await response.json()) as { issuer: string }).issuer;
  } catch (error) {
    throw error instanceof Problem ? error : new Unreachable(error);
  }
}

async function issuerOrigin(): Promise<string> {
  return new URL(await issuerOf()).origin;
}

function redirectUri(): string {
  return location.origin + CALLBACK_PATH;
}

function randomText(bytes: number): string {
  return base64url(crypto.getRandomValues(new Uint8Array(bytes)));
}

function base64url(bytes: Uint8Array): string {
  const text = btoa(String.fromCharCode(...bytes));
  return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
