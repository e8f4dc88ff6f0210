/** What is shown to whoever is not logged in, and why. */
import { Button } from "../ui/controls";
import { Mark } from "../shell/Mark";
import { session } from "../auth/session";

export function LoginPage({ problem }: { problem?: string }) {
  return (
    <main className="login">
      <Mark />
      <h1>{problem ? "You are not logged in" : "You are logged out"}</h1>
      {problem && <p className="problem">{problem}</p>}
      <Button kind="primary" onPress={() => void session.logIn("/")}>
        Log in
      </Button>
    </main>
  );
}

/** Browsers give pages no cryptography on addresses that others may listen to. */
export function InsecurePage() {
  return (
    <main className="login">
      <Mark />
      <h1>This address is not safe</h1>
      <p className="problem">
        Browsers allow a login over HTTPS, or on the machine itself. Open the portal by its https://
        address; to a platform on another machine, forward a port ({" "}
        <code>ssh -L 8080:127.0.0.1:8080 HOST</code>) and open http://127.0.0.1:8080.
      </p>
    </main>
  );
}
