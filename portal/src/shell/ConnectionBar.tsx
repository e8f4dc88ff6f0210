/** Says whether what is seen is live, and what happens while it is not. */
import { useEffect, useState } from "react";
import { useConnection } from "../live/connection";
import { duration } from "../ui/format";
import { useNow } from "../ui/hooks";

/** A loss that is over by then is nobody's matter. */
const PATIENCE_MS = 1_000;
const RETURN_SHOWN_MS = 4_000;

export function ConnectionBar() {
  const connection = useConnection();
  const isLost = connection.state === "lost";
  const now = useNow(1000, isLost);
  const [wasLost, setWasLost] = useState(false);
  const shows = isLost && now - connection.since > PATIENCE_MS;

  useEffect(() => {
    if (shows) setWasLost(true);
  }, [shows]);
  useEffect(() => {
    if (!wasLost || isLost) return;
    const timer = setTimeout(() => setWasLost(false), RETURN_SHOWN_MS);
    return () => clearTimeout(timer);
  }, [wasLost, isLost]);

  return (
    <>
      <span className={`live ${connection.state}`} title={TITLES[connection.state]}>
        <span className="live-dot" aria-hidden="true" />
        {connection.state === "live" ? "Live" : connection.state === "lost" ? "Away" : "…"}
      </span>
      <div className="connection" role="status" data-connection={connection.state}>
        {shows && (
          <p className="connection-bar lost">
            <strong>The platform does not answer</strong> for {duration((now - connection.since) / 1000)}.
            Trying again by itself; what you typed is kept, and orders under way go on.
          </p>
        )}
        {!isLost && wasLost && (
          <p className="connection-bar back">
            <strong>Connected again.</strong> What happened meanwhile was read.
          </p>
        )}
      </div>
    </>
  );
}

const TITLES = {
  connecting: "Connecting",
  live: "Changes are shown as they happen",
  lost: "The connection is lost; trying again",
};
