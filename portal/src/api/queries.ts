/** What the pages ask, and the names under which it is kept. */
import { queryOptions } from "@tanstack/react-query";
import {
  allPages,
  answered,
  api,
  type ClusterOrder,
  type ClusterQuote,
  type Operation,
} from "./client";
import { Problem } from "./problem";

const MOST = 500;
/** An order is known to its list a moment after it was answered: lists are fed by events. */
const KNOWN_WITHIN = 20;

export const whoami = queryOptions({
  queryKey: ["whoami"],
  queryFn: () => answered(api.GET("/v1/whoami")),
  staleTime: 300_000,
});

export const organizations = queryOptions({
  queryKey: ["organizations"],
  queryFn: () =>
    allPages((cursor) => api.GET("/v1/organizations", { params: { query: { cursor, limit: MOST } } })),
  staleTime: 60_000,
});

export const projects = queryOptions({
  queryKey: ["projects"],
  queryFn: () =>
    allPages((cursor) => api.GET("/v1/projects", { params: { query: { cursor, limit: MOST } } })),
  staleTime: 60_000,
});

export const sites = queryOptions({
  queryKey: ["sites"],
  queryFn: async () => (await answered(api.GET("/v1/sites"))).items,
});

export const nodeTypes = queryOptions({
  queryKey: ["node-types"],
  queryFn: async () => (await answered(api.GET("/v1/node-types"))).items,
  staleTime: 60_000,
});

export const images = queryOptions({
  queryKey: ["images"],
  queryFn: async () => (await answered(api.GET("/v1/images"))).items,
  staleTime: 60_000,
});

export const nodes = queryOptions({
  queryKey: ["nodes"],
  queryFn: () =>
    allPages((cursor) => api.GET("/v1/nodes", { params: { query: { cursor, limit: MOST } } })),
});

export const clusters = queryOptions({
  queryKey: ["clusters"],
  queryFn: () =>
    allPages((cursor) => api.GET("/v1/clusters", { params: { query: { cursor, limit: MOST } } })),
});

export function cluster(project: string, name: string) {
  return queryOptions({
    queryKey: ["cluster", project, name],
    queryFn: () =>
      answered(
        api.GET("/v1/projects/{project}/clusters/{cluster}", {
          params: { path: { project, cluster: name } },
        }),
      ),
  });
}

export function operation(id: string) {
  return queryOptions({
    queryKey: ["operation", id],
    queryFn: () =>
      answered(api.GET("/v1/operations/{operation}", { params: { path: { operation: id } } })),
    retry: (count, error) =>
      error instanceof Problem && error.status < 500
        ? error.status === 404 && count < KNOWN_WITHIN
        : true,
  });
}

export function sshKeys(project: string) {
  return queryOptions({
    queryKey: ["ssh-keys", project],
    queryFn: () =>
      allPages((cursor) =>
        api.GET("/v1/projects/{project}/ssh-keys", {
          params: { path: { project }, query: { cursor, limit: MOST } },
        }),
      ),
    enabled: project !== "",
  });
}

/** What an order would get and cost; throws the refusal that the order would meet. */
export function quote(project: string, order: ClusterOrder | null) {
  return queryOptions({
    queryKey: ["quote", project, order],
    queryFn: async ({ signal }) => {
      const answer = await answered(
        api.POST("/v1/projects/{project}/clusters", {
          params: { path: { project }, query: { dry_run: true } },
          body: order as ClusterOrder,
          signal,
        }),
      );
      // A dry run is answered with a quote, an order with its operation.
      return answer as ClusterQuote;
    },
    enabled: project !== "" && order !== null,
    staleTime: 5_000,
    gcTime: 30_000,
  });
}

/** Order a cluster; the same key gives the same order however often it is sent. */
export async function orderCluster(
  project: string,
  order: ClusterOrder,
  key: string,
): Promise<Operation> {
  const answer = await answered(
    api.POST("/v1/projects/{project}/clusters", {
      params: { path: { project }, header: { "Idempotency-Key": key } },
      body: order,
    }),
  );
  return answer as Operation;
}

export async function releaseCluster(
  project: string,
  name: string,
  key: string,
): Promise<Operation> {
  return answered(
    api.DELETE("/v1/projects/{project}/clusters/{cluster}", {
      params: { path: { project, cluster: name }, header: { "Idempotency-Key": key } },
    }),
  );
}

export async function cancelOperation(id: string): Promise<Operation> {
  return answered(
    api.POST("/v1/operations/{operation}/cancel", { params: { path: { operation: id } } }),
  );
}

export async function addSshKey(project: string, name: string, publicKey: string) {
  return answered(
    api.POST("/v1/projects/{project}/ssh-keys", {
      params: { path: { project } },
      body: { name, public_key: publicKey },
    }),
  );
}
