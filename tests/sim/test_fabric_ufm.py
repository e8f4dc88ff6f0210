"""The UFM manager keeps its promises at the wire (UFM Enterprise REST API Guide 6.22)."""

import httpx
import pytest

from dflare.sim.config import HardwareTimes
from fabric_site import AUTH, fabric_config, fabric_site, guid, job_ended, ok

SLOW = HardwareTimes(ufm_job_s=30)
WITH_GUIDS = {"guids_data": "true"}


async def test_lists_have_the_shapes_that_public_clients_read() -> None:
    async with fabric_site() as site:
        await ok(site.member("0x0012", [guid(0), f"0x{guid(1).upper()}"], index0=True))
        assert await ok(site.ufm.get("/resources/pkeys")) == ["0x7fff", "0x12"]
        every = await ok(site.ufm.get("/resources/pkeys", params=WITH_GUIDS))
        assert every["0x7fff"] == {
            "partition": "management",
            "ip_over_ib": True,
            "guids": [],
            "membership": "full",
        }
        one = await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS))
        assert one == every["0x12"]
        assert one == {
            "partition": "api_pkey_0x12",
            "ip_over_ib": True,
            "guids": [
                {"guid": guid(0), "membership": "full", "index0": True},
                {"guid": guid(1), "membership": "full", "index0": True},
            ],
        }
        unknown = await site.ufm.get("/resources/pkeys/0x99", params=WITH_GUIDS)
        assert (unknown.status_code, unknown.json()) == (200, {})
        qos = await ok(site.ufm.get("/resources/pkeys/0x12", params={"qos_conf": "true"}))
        assert qos["qos_conf"] == {"mtu_limit": 2, "service_level": 0, "rate_limit": 2.5}
        assert "guids" not in qos


async def test_the_inventory_names_every_port_of_every_host() -> None:
    async with fabric_site() as site:
        assert await ok(site.ufm.get("/app/ufm_version")) == {"ufm_release_version": "6.22.1-3"}
        assert "m_key" in await ok(site.ufm.get("/app/smconf"))
        ports = await ok(site.ufm.get("/resources/ports", params={"sys_type": "Computer"}))
        assert len(ports) == 12
        assert ports[0]["guid"] == guid(0)
        assert ports[0]["system_name"] == "n0-0"
        assert (ports[0]["physical_state"], ports[0]["logical_state"]) == ("Link Up", "Active")
        systems = await ok(site.ufm.get("/resources/systems"))
        assert {s["guid"] for s in systems} == {p["systemID"] for p in ports}


async def test_a_write_takes_effect_when_its_job_completes() -> None:
    async with fabric_site(fabric_config(times=SLOW)) as site:
        answer = await site.member("0x12", [guid(0)])
        assert answer.status_code == 200
        assert answer.headers["location"] == "/ufmRest/jobs/1"
        assert await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS)) == {}
        running = await ok(site.ufm.get("/jobs", params={"status": "Running"}))
        assert [job["ID"] for job in running] == ["1"]
        job = await job_ended(site, answer)
        assert (job["Status"], job["Progress"]) == ("Completed", 100)
        assert job["RelatedObjects"] == [guid(0)]
        members = await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS))
        assert [m["guid"] for m in members["guids"]] == [guid(0)]


async def test_put_sets_exactly_the_members_it_names() -> None:
    async with fabric_site() as site:
        await ok(site.member("0x12", [guid(0), guid(1)]))
        body = {"pkey": "0x12", "guids": [guid(1), guid(2)], "memberships": ["limited", "full"]}
        await ok(site.ufm.put("/resources/pkeys", json=body))
        shown = await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS))
        assert {m["guid"]: m["membership"] for m in shown["guids"]} == {
            guid(1): "limited",
            guid(2): "full",
        }


async def test_both_ways_of_removing_work_and_an_added_partition_outlives_its_ports() -> None:
    async with fabric_site() as site:
        added = {"pkey": "0x20", "partition_name": "tenant", "ip_over_ib": False}
        await ok(site.ufm.post("/resources/pkeys/add", json=added))
        again = await site.ufm.post("/resources/pkeys/add", json=added)
        assert again.status_code == 400
        assert "already exist" in again.json()["error"]
        await ok(site.member("0x20", [guid(0), guid(1)], ip_over_ib=False))
        body = {"pkey": "0x20", "guids": [guid(0)]}
        await ok(site.ufm.post("/actions/remove_guids_from_pkey", json=body))
        await ok(site.ufm.delete(f"/resources/pkeys/0x20/guids/{guid(1)},{guid(2)}"))
        shown = await ok(site.ufm.get("/resources/pkeys/0x20", params=WITH_GUIDS))
        assert shown == {"partition": "tenant", "ip_over_ib": False, "guids": []}
        await ok(site.ufm.delete("/resources/pkeys/0x20"))
        assert await ok(site.ufm.get("/resources/pkeys")) == ["0x7fff"]
        gone = await site.ufm.delete("/resources/pkeys/0x20")
        assert gone.status_code == 404


async def test_a_late_job_makes_a_removed_partition_again() -> None:
    async with fabric_site() as site:
        site.faults.add("ufm_job_late", "ufm1", count=1, params={"seconds": 600})
        late = await site.member("0x12", [guid(0), guid(3)])
        await ok(site.member("0x12", [guid(1)]))
        await ok(site.ufm.delete("/resources/pkeys/0x12"))
        assert await ok(site.ufm.get("/resources/pkeys")) == ["0x7fff"]
        assert (await job_ended(site, late))["Status"] == "Completed"
        shown = await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS))
        assert {m["guid"] for m in shown["guids"]} == {guid(0), guid(3)}
        last = site.log.entries("pkey_changed", "0x12")[-1]
        assert last.facts["job"] == late.headers["location"].rpartition("/")[2]
        assert last.facts["hosts"] == ["n0-0", "n1-0"]


async def test_a_fault_can_be_aimed_at_one_kind_of_write() -> None:
    async with fabric_site() as site:
        await ok(site.member("0x12", [guid(0)]))
        site.faults.add("ufm_job_late", "ufm1/add/0x12")
        late = await site.member("0x12", [guid(1)])
        await ok(site.member("0x13", [guid(1)]))
        await ok(site.ufm.delete(f"/resources/pkeys/0x12/guids/{guid(0)}"))
        running = await ok(site.ufm.get("/jobs", params={"status": "Running"}))
        assert [f"/ufmRest/jobs/{job['ID']}" for job in running] == [late.headers["location"]]
        assert await ok(site.ufm.get("/resources/pkeys")) == ["0x7fff", "0x13"]


async def test_a_failed_job_says_why_and_changes_nothing() -> None:
    async with fabric_site() as site:
        site.faults.add("ufm_job_fails", "ufm1", count=1, params={"reason": "SM is in standby"})
        job = await job_ended(site, await site.member("0x12", [guid(0)]))
        assert (job["Status"], job["Summary"]) == ("Completed With Errors", "SM is in standby")
        assert await ok(site.ufm.get("/resources/pkeys")) == ["0x7fff"]


async def test_an_aborted_job_never_takes_effect() -> None:
    async with fabric_site(fabric_config(times=SLOW)) as site:
        aborted = await site.member("0x12", [guid(0)])
        kept = await site.member("0x13", [guid(0)])
        await ok(site.ufm.delete(aborted.headers["location"].removeprefix("/ufmRest")))
        assert (await job_ended(site, aborted))["Status"] == "Aborted"
        await job_ended(site, kept)
        await site.clock.sleep(60)
        assert await ok(site.ufm.get("/resources/pkeys")) == ["0x7fff", "0x13"]


async def test_hosts_are_added_and_removed_by_name_with_202() -> None:
    async with fabric_site() as site:
        body = {"hosts_names": "n0-0,n1-2", "pkey": "0x12", "membership": "limited"}
        answer = await site.ufm.post("/resources/pkeys/hosts", json=body)
        assert answer.status_code == 202
        assert (await job_ended(site, answer))["Status"] == "Completed"
        shown = await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS))
        assert len(shown["guids"]) == 4
        answer = await site.ufm.delete("/resources/pkeys/0x12/hosts/n0-0,n1-2")
        assert answer.status_code == 202
        assert await ok(site.ufm.get("/resources/pkeys/0x12", params=WITH_GUIDS)) == {}


@pytest.mark.parametrize(
    "body",
    [
        {"pkey": "0x0", "guids": [guid(0)]},
        {"pkey": "0x8001", "guids": [guid(0)]},
        {"pkey": 18, "guids": [guid(0)]},
        {"pkey": "0x12", "guids": []},
        {"pkey": "0x12", "guids": ["xyz"]},
        {"pkey": "0x12", "guids": guid(0)},
        {"pkey": "0x12", "guids": [guid(0)], "membership": "both"},
        {"pkey": "0x12", "guids": [guid(0)], "memberships": []},
        {"pkey": "0x12", "guids": [guid(0)], "index0": "yes"},
        [],
    ],
)
async def test_a_bad_request_is_refused_and_starts_no_job(body: object) -> None:
    async with fabric_site() as site:
        answer = await site.ufm.post("/resources/pkeys", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]
        assert await ok(site.ufm.get("/jobs")) == []


async def test_wrong_credentials_and_unknown_paths_get_nothing() -> None:
    async with fabric_site() as site:
        transport = httpx.ASGITransport(site.fabric.ufm_app())
        async with httpx.AsyncClient(transport=transport, base_url="https://ufm/ufmRest") as client:
            assert (await client.get("/resources/pkeys")).status_code == 401
            assert (await client.get("/nothing", auth=AUTH)).status_code == 404
        broken = await site.ufm.post("/resources/pkeys", content=b"{")
        assert broken.status_code == 400
