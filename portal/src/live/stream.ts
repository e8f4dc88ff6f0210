/**
 * Events as they happen: one WebSocket a tab, resumed by cursor.
 *
 * `hello` comes after each connection. What was missed in between follows it, unless the cursor was
 * too old: then `missed` says that everything has to be read anew.
 */
import { LoggedOut } from "../api/problem";
import { session } from "../auth/session";
import { setConnection } from "./connection";

const CLOSE_UNAUTHENTICATED = 4401;
const CLOSE_GONE = 4410;
/** Three heartbeats: a connection that says nothing for so long is dead. */
const SILENCE_MS = 45_000;
const PAUSE_AT_MOST_MS = 3_000;
const PAUSE_AT_FIRST_MS = 200;

export interface PlatformEvent {
  cursor: string;
  type: string;
  resource_kind: string;
  resource_id: string;
  resource_version: number;
  operation_id: string | null;
  project_id: string | null;
  at: string;
  data: Record<string, unknown>;
}

interface Handlers {
  onEvent: (event: PlatformEvent) => void;
  /** The connection stands; `missed` where events were lost for ever. */
  onHello: (missed: boolean) => void;
}

export class EventStream {
  #cursor: string | null = null;
  #missed = true;
  #socket: WebSocket | null = null;
  #pauseMs = PAUSE_AT_FIRST_MS;
  #timer = 0;
  #silence = 0;
  #stopped = false;

  constructor(
    private readonly types: string,
    private readonly handlers: Handlers,
  ) {}

  start(): void {
    addEventListener("online", this.#retryNow);
    addEventListener("visibilitychange", this.#retryNow);
    void this.#connect();
  }

  stop(): void {
    this.#stopped = true;
    removeEventListener("online", this.#retryNow);
    removeEventListener("visibilitychange", this.#retryNow);
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    this.#socket?.close();
  }

  #retryNow = (): void => {
    if (this.#timer === 0 || document.visibilityState === "hidden") return;
    clearTimeout(this.#timer);
    this.#timer = 0;
    void this.#connect();
  };

  async #connect(renew?: string): Promise<void> {
    let token: string;
    try {
      token = await session.token({ renew });
    } catch (error) {
      if (!(error instanceof LoggedOut)) this.#later();
      return;
    }
    if (this.#stopped) return;
    const url = new URL("/v1/events", location.origin.replace(/^http/, "ws"));
    url.searchParams.set("types", this.types);
    url.searchParams.set("access_token", token);
    if (this.#cursor) url.searchParams.set("cursor", this.#cursor);
    const socket = new WebSocket(url);
    this.#socket = socket;
    this.#heard(socket);
    socket.onmessage = (message) => {
      this.#heard(socket);
      this.#take(JSON.parse(String(message.data)) as PlatformEvent);
    };
    socket.onclose = (closed) => {
      if (this.#socket !== socket || this.#stopped) return;
      clearTimeout(this.#silence);
      if (closed.code === CLOSE_UNAUTHENTICATED) {
        void this.#connect(token);
        return;
      }
      if (closed.code === CLOSE_GONE) {
        this.#cursor = null;
        this.#missed = true;
      }
      this.#later();
    };
  }

  #heard(socket: WebSocket): void {
    clearTimeout(this.#silence);
    this.#silence = window.setTimeout(() => socket.close(), SILENCE_MS);
  }

  #later(): void {
    if (this.#stopped) return;
    setConnection("lost");
    // A little chance keeps a thousand tabs from coming back in the same moment.
    const pause = this.#pauseMs * (0.75 + Math.random() / 2);
    this.#pauseMs = Math.min(this.#pauseMs * 2, PAUSE_AT_MOST_MS);
    this.#timer = window.setTimeout(() => {
      this.#timer = 0;
      void this.#connect();
    }, pause);
  }

  #take(event: PlatformEvent): void {
    this.#cursor = event.cursor;
    if (event.type === "heartbeat") return;
    if (event.type === "hello") {
      this.#pauseMs = PAUSE_AT_FIRST_MS;
      setConnection("live");
      this.handlers.onHello(this.#missed);
      this.#missed = false;
      return;
    }
    this.handlers.onEvent(event);
  }
}
