/** The API, typed by the document that it gives of itself (`npm run api`). */
import createClient from "openapi-fetch";
import { session } from "../auth/session";
import type { components, paths } from "../generated/api";
import { problemOf, Unreachable } from "./problem";

type Schemas = components["schemas"];
export type Cluster = Schemas["ClusterAnswer"];
export type ClusterOrder = Schemas["ClusterBody"];
export type ClusterQuote = Schemas["dflare__services__clusters__api__QuoteAnswer"];
export type Image = Schemas["ImageAnswer"];
export type Node = Schemas["NodeAnswer"];
export type NodeType = Schemas["NodeTypeAnswer"];
export type Operation = Schemas["OperationAnswer"];
export type Organization = Schemas["OrganizationDocument"];
export type Project = Schemas["ProjectDocument"];
export type Site = Schemas["SiteAnswer"];
export type SshKey = Schemas["SshKeyAnswer"];
export type Step = Schemas["StepAnswer"];
export type WhoAmI = Schemas["WhoAmI"];

export const api = createClient<paths>({ baseUrl: location.origin, fetch: authorized });

/** Send a request as whoever is logged in; once more with a new token where it was refused. */
async function authorized(request: Request): Promise<Response> {
  const again = request.clone();
  const token = await session.token();
  let response = await send(request, token);
  if (response.status === 401) {
    response = await send(again, await session.token({ renew: token }));
  }
  return response;
}

async function send(request: Request, token: string): Promise<Response> {
  request.headers.set("Authorization", `Bearer ${token}`);
  try {
    return await fetch(request);
  } catch (error) {
    if (request.signal.aborted) throw error;
    throw new Unreachable(error);
  }
}

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/** The body of a successful answer; throws the refusal. */
export async function answered<T>(asked: Promise<Answer<T>>): Promise<T> {
  const { data, error, response } = await asked;
  if (response.ok) return data as T;
  // The body was read already: it is given again, as openapi-fetch parsed it.
  const body = typeof error === "string" ? error : JSON.stringify(error ?? {});
  throw await problemOf(new Response(body, { status: response.status }));
}

interface PageOf<T> {
  items: T[];
  next_cursor?: string | null;
}

/** Every item of a list, page by page. */
export async function allPages<T>(
  page: (cursor: string | undefined) => Promise<Answer<PageOf<T>>>,
): Promise<T[]> {
  const items: T[] = [];
  let cursor: string | undefined;
  do {
    const found = await answered(page(cursor));
    items.push(...found.items);
    cursor = found.next_cursor ?? undefined;
  } while (cursor !== undefined);
  return items;
}
