"""Attaches packet programs to an interface as planned, falling back where driver or kernel refuse.

Takes a ``Plan`` and program fds by name; returns a ``Hook`` that says what it became and why. XDP sees no
sent packets, so an interface on XDP gets the egress TC program as well. Blocks (see ``kernel.netlinks``),
keeps no table, and is used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping

import msgspec

from spliffd.interfaces import policy
from spliffd.interfaces.policy import Plan
from spliffd.kernel import netlinks, rtnetlink

_TAKEN = (errno.EBUSY, errno.EEXIST)


class Hook(msgspec.Struct):
    """What an interface got."""

    kind: str
    """XDP or TC."""
    mode: str
    """native, generic, tcx or clsact."""
    reason: str
    """Why it is this one."""
    index: int
    links: list[int]
    """fds of XDP and TCX links."""
    filters: bool = False
    """Whether there are clsact filters of ours as well."""
    provisional: bool = False
    """Filters now, TCX links when there is time: see ``Hooks.promote``."""


class Hooks:
    """Attaches, looks after and detaches; ``programs`` may be filled later."""

    def __init__(self, programs: Mapping[str, int]) -> None:
        self._programs = programs
        self._token = netlinks.Token()
        self._requests = rtnetlink.Requests()
        self._clsact = netlinks.Clsact(self._requests, self._token.text)
        self._tcx: bool | None = None
        self._placeholder = -1

    @property
    def has_tcx(self) -> bool:
        """Whether this kernel takes TCX links; asked once."""
        if self._tcx is None:
            self._tcx = netlinks.has_tcx(self._programs["tc_ingress_l2"])
        return self._tcx

    def links(self, body: bytes) -> list[bytes]:
        """All interfaces, as bodies of RTM_NEWLINK."""
        return self._requests.dump(rtnetlink.GET_LINK, body)

    def sweep(self) -> int:
        """Takes away the filters of daemons that were killed; returns how many."""
        return self._clsact.sweep()

    def attach(self, index: int, plan: Plan, *, hurry: bool = False) -> Hook:
        """Does what ``plan`` says, or the next best; raises OSError when nothing can be attached.

        In a hurry TC gets filters first, which take a tenth of the time and do not hold up whoever is making
        interfaces; they are to be promoted.
        """
        if plan.hook == policy.TC and hurry and self.has_tcx:
            hook = self._attach_tc(index, plan._replace(hook=policy.CLSACT), plan.reason)
            hook.provisional = True
            return hook
        if plan.hook not in (policy.XDP_NATIVE, policy.XDP_GENERIC):
            return self._attach_tc(index, plan, plan.reason)
        generic = plan.hook == policy.XDP_GENERIC
        try:
            link = netlinks.xdp_link(self._programs[f"xdp_l{plan.layer}"], index, generic=generic)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise
            why = "XDP is in use by another program" if error.errno in _TAKEN else f"XDP: {error.strerror}"
            return self._attach_tc(index, plan, why)
        hook = Hook("XDP", "generic" if generic else "native", plan.reason, index, [link])
        try:
            self._add_tc(hook, plan, ingress=False)
        except OSError:
            self.detach(hook)
            raise
        return hook

    def _attach_tc(self, index: int, plan: Plan, reason: str) -> Hook:
        hook = Hook("TC", "", reason, index, [])
        try:
            hook.mode = self._add_tc(hook, plan, ingress=True)
        except OSError:
            self.detach(hook)
            raise
        return hook

    def _add_tc(self, hook: Hook, plan: Plan, *, ingress: bool) -> str:
        received = self._programs[f"tc_ingress_l{plan.layer}"] if ingress else None
        kind = "xdp" if hook.kind == "XDP" else "tc"
        sent = self._programs[f"{kind}_egress_l{plan.layer}"]
        if plan.hook != policy.CLSACT and self.has_tcx:
            if received is not None:
                hook.links.append(netlinks.tcx_link(received, hook.index, egress=False))
            hook.links.append(netlinks.tcx_link(sent, hook.index, egress=True))
            return "tcx"
        hook.filters = True
        missing = self._clsact.attach(hook.index, received, sent)
        if missing:
            hook.reason = missing
        return "clsact"

    def promote(self, hook: Hook, plan: Plan) -> None:
        """Filters become TCX links. Raises OSError, and then the filters stay.

        Links with an empty program come first, as they take long. Then program in, filter out, each way: what
        passes in the 0.1 ms between is counted twice, and nothing is missed.
        """
        hook.provisional = False
        if self._placeholder < 0:
            self._placeholder = netlinks.tcx_placeholder()
        links: list[int] = []
        try:
            links.append(netlinks.tcx_link(self._placeholder, hook.index, egress=False))
            links.append(netlinks.tcx_link(self._placeholder, hook.index, egress=True))
            netlinks.update(links[0], self._programs[f"tc_ingress_l{plan.layer}"])
            self._clsact.detach(hook.index, (netlinks.INGRESS,))
            netlinks.update(links[1], self._programs[f"tc_egress_l{plan.layer}"])
            self._clsact.detach(hook.index, (netlinks.EGRESS,))
        except OSError:
            for link in links:
                os.close(link)
            raise
        hook.links, hook.filters, hook.mode, hook.reason = links, False, "tcx", plan.reason

    def is_attached(self, hook: Hook) -> bool:
        """Whether all of it is still on its interface: links die with that, filters can be removed."""
        try:
            if any(netlinks.interface(link) != hook.index for link in hook.links):
                return False
            return not hook.filters or self._clsact.is_attached(hook.index)
        except OSError:
            return False

    def detach(self, hook: Hook) -> None:
        """Takes it all away, also from an interface that has left for another namespace or is gone."""
        for link in hook.links:
            os.close(link)
        hook.links = []
        if hook.filters:
            hook.filters = False
            with contextlib.suppress(OSError):  # the interface is gone, and its qdisc with it
                self._clsact.detach(hook.index)

    def close(self) -> None:
        """Closes what attaching needs; hooks must be detached by then."""
        if self._placeholder >= 0:
            os.close(self._placeholder)
        self._requests.close()
        self._token.close()
