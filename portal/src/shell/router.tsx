/** Addresses of the portal. Their first parts are known to the gateway too (`apps/portal.py`). */
import {
  createRootRoute,
  createRoute,
  createRouter,
  redirect,
  type ErrorComponentProps,
} from "@tanstack/react-router";
import { ClusterPage } from "../pages/ClusterPage";
import { ClustersPage } from "../pages/ClustersPage";
import { OperationPage } from "../pages/OperationPage";
import { OrderPage } from "../pages/OrderPage";
import { SitePage } from "../pages/SitePage";
import { Empty, Link, ProblemNote } from "../ui/parts";
import { Shell } from "./Shell";

const root = createRootRoute({ component: Shell, notFoundComponent: NotFound, errorComponent: Broken });

const index = createRoute({
  getParentRoute: () => root,
  path: "/",
  beforeLoad: () => {
    throw redirect({ to: "/sites" });
  },
});

const routeTree = root.addChildren([
  index,
  createRoute({ getParentRoute: () => root, path: "/sites", component: SitePage }),
  createRoute({ getParentRoute: () => root, path: "/sites/$site", component: SitePage }),
  createRoute({ getParentRoute: () => root, path: "/clusters", component: ClustersPage }),
  createRoute({
    getParentRoute: () => root,
    path: "/clusters/$project/$cluster",
    component: ClusterPage,
  }),
  createRoute({ getParentRoute: () => root, path: "/order", component: OrderPage }),
  createRoute({
    getParentRoute: () => root,
    path: "/operations/$operation",
    component: OperationPage,
  }),
]);

export const router = createRouter({ routeTree, defaultPreload: false, scrollRestoration: false });

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}

function NotFound() {
  return (
    <Empty alone title="No such page" action={<Link to="/clusters">Go to the clusters</Link>}>
      The address is wrong, or the page moved.
    </Empty>
  );
}

function Broken({ error }: ErrorComponentProps) {
  return <ProblemNote error={error} title="This page failed" />;
}
