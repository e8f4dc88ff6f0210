/** Names of the things that ids stand for. */
import { useQuery } from "@tanstack/react-query";
import { organizations, projects, sites } from "../api/queries";

export function useProjectNames(): Map<string, string> {
  const owners = new Map(useQuery(organizations).data?.map((one) => [one.id, one.name]));
  return new Map(
    useQuery(projects).data?.map((one) => {
      const owner = owners.get(one.organization_id);
      return [one.id, owner ? `${owner}/${one.name}` : one.name];
    }),
  );
}

export function useSiteNames(): Map<string, string> {
  return new Map(useQuery(sites).data?.map((one) => [one.id, one.name]));
}
