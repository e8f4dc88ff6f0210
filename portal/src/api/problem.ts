/** What the API refuses with (RFC 9457), with what to do next. */
export interface ProblemDocument {
  type: string;
  title: string;
  status: number;
  detail: string;
  next_step: string;
  retryable: boolean;
  errors?: { where: string; message: string }[];
}

/** The API answered, with a refusal. */
export class Problem extends Error {
  readonly document: ProblemDocument;

  constructor(document: ProblemDocument) {
    super(document.detail || document.title);
    this.name = "Problem";
    this.document = document;
  }

  get status(): number {
    return this.document.status;
  }

  /** The last part of the problem's type, such as `capacity`. */
  get slug(): string {
    return this.document.type.split("/").at(-1) ?? "";
  }
}

/** Nobody answered: the platform is away or the network is. */
export class Unreachable extends Error {
  constructor(cause?: unknown) {
    super("The platform does not answer.", { cause });
    this.name = "Unreachable";
  }
}

/** The login is over; only a person can begin another. */
export class LoggedOut extends Error {
  constructor() {
    super("The login has ended.");
    this.name = "LoggedOut";
  }
}

/** Read the refusal out of an answer that is none of success. */
export async function problemOf(response: Response): Promise<Problem | Unreachable> {
  const text = await response.text().catch(() => "");
  const document = parsed(text);
  if (document) return new Problem(document);
  // Something before the gateway answered for it, as proxies do while it is away.
  if ([502, 503, 504].includes(response.status)) return new Unreachable();
  return new Problem({
    type: "about:blank",
    title: response.statusText || `Status ${response.status}`,
    status: response.status,
    detail: `The answer had status ${response.status} and no explanation.`,
    next_step: "Load the page again; if it stays, tell an operator.",
    retryable: response.status >= 500,
  });
}

function parsed(text: string): ProblemDocument | null {
  try {
    const document: unknown = JSON.parse(text);
    if (typeof document !== "object" || document === null || !("title" in document)) return null;
    const known = document as Partial<ProblemDocument>;
    return {
      type: known.type ?? "about:blank",
      title: known.title ?? "Refused",
      status: known.status ?? 0,
      detail: known.detail ?? "",
      next_step: known.next_step ?? "",
      retryable: known.retryable ?? false,
      ...(known.errors ? { errors: known.errors } : {}),
    };
  } catch {
    return null;
  }
}

/** Whether asking again may help without anybody changing anything. */
export function isPassing(error: unknown): boolean {
  return error instanceof Unreachable || (error instanceof Problem && error.status >= 500);
}
