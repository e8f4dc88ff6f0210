/** Which SSH keys may log in to the nodes, and adding one on the way. */
import { useState } from "react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { addSshKey, sshKeys } from "../api/queries";
import { Button, Checkbox, TextField } from "../ui/controls";
import { ProblemNote } from "../ui/parts";

interface Props {
  project: string;
  chosen: readonly string[];
  onChange: (keys: string[]) => void;
}

export function SshKeys({ project, chosen, onChange }: Props) {
  const { data, error } = useQuery(sshKeys(project));
  const [adds, setAdds] = useState(false);
  return (
    <div className="stack" role="group" aria-labelledby="ssh-keys">
      <h2 id="ssh-keys">SSH keys</h2>
      <ProblemNote error={error} />
      {data?.map((key) => (
        <Checkbox
          key={key.id}
          isSelected={chosen.includes(key.name)}
          onChange={(selected) =>
            onChange(
              selected ? [...chosen, key.name] : chosen.filter((name) => name !== key.name),
            )
          }
        >
          <strong>{key.name}</strong> <code className="soft clip">{key.fingerprint}</code>
        </Checkbox>
      ))}
      {chosen.length === 0 && (
        <p className="hint">Without a key nobody can log in to the nodes.</p>
      )}
      {adds ? (
        <NewKey
          project={project}
          onDone={(name) => {
            setAdds(false);
            if (name) onChange([...chosen, name]);
          }}
        />
      ) : (
        <div>
          <Button isDisabled={!project} onPress={() => setAdds(true)}>
            Add a key
          </Button>
        </div>
      )}
    </div>
  );
}

function NewKey({ project, onDone }: { project: string; onDone: (name?: string) => void }) {
  const client = useQueryClient();
  const [name, setName] = useState("");
  const [text, setText] = useState("");
  const add = useMutation({
    mutationFn: () => addSshKey(project, name, text.trim()),
    onSuccess: async (key) => {
      await client.invalidateQueries({ queryKey: ["ssh-keys", project] });
      onDone(key.name);
    },
  });
  function changeText(value: string): void {
    setText(value);
    // The comment of a key names it well enough: `ada@laptop` becomes `ada-laptop`.
    const comment = value.trim().split(/\s+/)[2] ?? "";
    if (!name && comment) setName(comment.toLowerCase().replace(/[^a-z0-9]+/g, "-"));
  }
  return (
    <div className="new-key">
      <TextField
        label="Public key"
        value={text}
        onChange={changeText}
        hint="One line, as in ~/.ssh/id_ed25519.pub"
        rows={3}
        mono
      />
      <TextField label="Name of the key" value={name} onChange={setName} mono />
      <ProblemNote error={add.error} />
      <div className="row">
        <Button
          isDisabled={!name || !text.trim()}
          isPending={add.isPending}
          onPress={() => add.mutate()}
        >
          Keep the key
        </Button>
        <Button kind="quiet" onPress={() => onDone()}>
          Leave it
        </Button>
      </div>
    </div>
  );
}
