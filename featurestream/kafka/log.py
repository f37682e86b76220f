"""A Kafka cluster as a log: its topics, its sinks and sources, and the positions that readers show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, TypeVar

from confluent_kafka import (
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from featurestream.absent import no_lane
from featurestream.closing import Closing
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, StreamMismatchError, UsageError
from featurestream.kafka.admin import describe
from featurestream.kafka.client import CONNECT_S, Home, Reports, ask, open_client
from featurestream.kafka.config import LANE_QUEUE_KBYTES, SINK_QUEUE_KBYTES, admin_settings, check_properties
from featurestream.kafka.errors import NO_LANE, code_of, request_failed
from featurestream.kafka.groups import Groups
from featurestream.kafka.rights import Right
from featurestream.kafka.sink import DELIVERY_S, KafkaSink
from featurestream.kafka.source import STALL_S, KafkaSource
from featurestream.names import GROUP_PREFIX, parse_reader_group
from featurestream.ports import Place

T = TypeVar("T")

SHOWN_S: Final = 30.0
REPLICAS: Final = 3  # the usual number: one broker may fail while another is being restarted


class KafkaLog(Closing):
    """A :class:`~featurestream.ports.Log` on a Kafka cluster. Close it, or use it as a context manager.

    ``queue_kbytes`` bounds what each lane's reader reads ahead, ``sink_queue_kbytes`` what each sink holds that is
    not acknowledged; a reader gives up after ``stall_s`` seconds without contact, a sink after ``delivery_s``. Nothing
    is connected before it is needed; of lanes that are ``known`` to be there nothing is asked before they are read.
    Raises UsageError for properties that contradict the settings on which exactness rests.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        client_id: str = "featurestream",
        queue_kbytes: int = LANE_QUEUE_KBYTES,
        sink_queue_kbytes: int = SINK_QUEUE_KBYTES,
        stall_s: float = STALL_S,
        delivery_s: float = DELIVERY_S,
        known: Iterable[Place] = (),
    ) -> None:
        check_properties(cluster)
        self.cluster = cluster
        self._client_id = client_id
        self._queue_kbytes = queue_kbytes
        self._sink_queue_kbytes = sink_queue_kbytes
        self._stall_s = stall_s
        self._delivery_s = delivery_s
        self._known = set(known)
        self._home = Home()
        self._groups = Groups(cluster, client_id, stall_s)

    def close(self) -> None:
        """Release the log's own connection; sinks and sources live on until they are closed."""
        self.__dict__.pop("_admin", None)  # the client disconnects when nothing refers to it
        self._groups.close()

    def __getstate__(self) -> dict[str, Any]:
        # A log may be sent to another process: it connects anew there.
        return {key: value for key, value in self.__dict__.items() if key not in ("_admin", "_home", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _home=Home())
        self._groups = Groups(self.cluster, self._client_id, self._stall_s)

    def sink(self) -> KafkaSink:
        """Return a new sink; the caller closes it."""
        return KafkaSink(
            self.cluster,
            client_id=self._client_id,
            queue_kbytes=self._sink_queue_kbytes,
            delivery_s=self._delivery_s,
        )

    def source(self) -> KafkaSource:
        """Return a new source; the caller closes it."""
        return KafkaSource(
            self.cluster,
            client_id=self._client_id,
            queue_kbytes=self._queue_kbytes,
            stall_s=self._stall_s,
            known=self._known,
        )

    def topics(self) -> dict[str, int]:
        """Return every topic's name and number of lanes."""
        found = self._describe("cannot list the topics").topics
        # A topic that is just being deleted is listed with an error and without lanes.
        return {name: len(topic.partitions) for name, topic in found.items() if topic.partitions}

    def create_topic(self, topic: str, lanes: int, settings: Mapping[str, str]) -> None:
        """Create a topic, and return when the cluster shows it; see :class:`~featurestream.ports.Log`.

        It has as many replicas as the cluster has brokers, but no more than three; with three, a record counts as
        written when two have it (``min.insync.replicas``), unless ``settings`` say otherwise.
        """
        if lanes < 1:
            raise UsageError(f'topic "{topic}" needs at least one lane, got {lanes}')
        doing = f'cannot create the topic "{topic}"'
        replicas = min(REPLICAS, len(self._describe(doing).brokers))
        config = {"min.insync.replicas": "2" if replicas == REPLICAS else "1", **settings}
        new = NewTopic(topic, num_partitions=lanes, replication_factor=replicas, config=config)
        self._ask(
            doing,
            lambda client, look_s: client.create_topics([new], request_timeout=look_s)[topic].result(),
            right=Right("Create", "topic", topic),
            unless=frozenset({KafkaError.TOPIC_ALREADY_EXISTS}),
        )
        found = self._wait_until(doing, lambda: self._lanes_of(doing, topic))
        if found != lanes:
            raise StreamMismatchError(
                f'topic "{topic}" exists with {found} lanes, not {lanes}',
                hint="the lanes of a stream are fixed when it is created",
                differences={"lanes": (found, lanes)},
            )

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Delete topics, and return when the cluster no longer shows them; those that do not exist are no error."""
        for topic in topics:
            self._delete(topic)

    def _delete(self, topic: str) -> None:
        doing = f'cannot delete the topic "{topic}"'
        self._ask(
            doing,
            lambda client, look_s: client.delete_topics([topic], request_timeout=look_s)[topic].result(),
            right=Right("Delete", "topic", topic),
            unless=NO_LANE,
        )
        self._wait_until(doing, lambda: self._lanes_of(doing, topic) is None)
        self._known.difference_update([place for place in list(self._known) if place[0] == topic])

    def settings(self, topic: str) -> dict[str, str]:
        """Return a topic's settings by Kafka's names, those among them that are the cluster's defaults."""
        asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
        found = self._ask(
            f'cannot read the settings of the topic "{topic}"',
            lambda client, look_s: client.describe_configs([asked], request_timeout=look_s)[asked].result(),
            right=Right("DescribeConfigs", "topic", topic),
            unless=NO_LANE,
        )
        if found is None:
            raise no_lane(topic, 0)
        return {name: entry.value for name, entry in found.items() if entry.value is not None}

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        """Publish the next offset of each (topic, lane) under a group, which nobody needs to have joined."""
        if not offsets:
            return
        doing, address = f'cannot commit positions to the group "{group}"', self.cluster.bootstrap_servers
        try:
            done = self._groups.commit(group, offsets, note)
        except KafkaException as error:
            if code_of(error) in NO_LANE:
                raise no_lane(*self._absent(offsets)) from error
            raise request_failed(error, doing, address, Right("Read", "group", group)) from error
        for place in done:
            if place.error is not None and place.error.code() in NO_LANE:
                raise no_lane(place.topic, place.partition)
            if place.error is not None:
                right = Right("Read", "topic", place.topic)
                raise request_failed(place.error, doing, address, right)

    def _absent(self, offsets: Mapping[tuple[str, int], int]) -> tuple[str, int]:
        """Return the first place that the cluster does not have."""
        topics = self.topics()
        return next((place for place in offsets if place[1] >= topics.get(place[0], 0)), next(iter(offsets)))

    def committed_positions(self) -> dict[str, dict[tuple[str, int], int]]:
        """Return what each of our groups (see :data:`featurestream.names.GROUP_PREFIX`) has committed."""
        return {
            group: {(place.topic, place.partition): place.offset for place in places}
            for group, places in self._committed(GROUP_PREFIX).items()
        }

    def committed_notes(self, prefix: str) -> dict[str, set[str]]:
        """Return the notes of each of our groups whose name begins with ``prefix``."""
        return {
            group: {place.metadata for place in places if place.metadata}
            for group, places in self._committed(prefix).items()
        }

    def _committed(self, prefix: str) -> dict[str, list[TopicPartition]]:
        """Return what our groups whose name begins with ``prefix`` have committed, of the topics of their streams."""
        listed = self._ask(
            "cannot list the consumer groups",
            lambda client, look_s: client.list_consumer_groups(request_timeout=look_s).result(),
        )
        names = sorted(entry.group_id for entry in listed.valid if entry.group_id.startswith(prefix))
        streams = {name: parsed[0] for name in names if (parsed := parse_reader_group(name)) is not None}
        lanes: dict[str, list[tuple[str, int]]] = {stream: [] for stream in streams.values()}
        for topic, count in self.topics().items() if lanes else ():
            lanes.get(topic.partition(".")[0], []).extend((topic, lane) for lane in range(count))
        try:
            return self._groups.committed({name: lanes[stream] for name, stream in streams.items()})
        except KafkaException as error:
            doing = "cannot read the positions of the consumer groups"
            raise request_failed(error, doing, self.cluster.bootstrap_servers) from error

    @cached_property
    def _admin(self) -> tuple[AdminClient, Reports]:
        return open_client(AdminClient, admin_settings(self.cluster, self._client_id))

    def _ask(
        self,
        doing: str,
        question: Callable[[AdminClient, float], Any],
        *,
        right: Right | None = None,
        unless: frozenset[int] = frozenset(),
    ) -> Any:
        """Return the cluster's answer, or None where it refuses with one of the codes in ``unless``.

        ``right`` is what a login needs for it.

        A question is asked again while the cluster is starting or electing, so it must do no harm when it is answered
        twice: a topic that was created by the first try exists for the second.
        """
        self._home.check()
        client, reports = self._admin
        limit_s = self._stall_s if reports.contact else CONNECT_S
        try:
            return ask(client, reports, limit_s, lambda look_s: question(client, look_s))
        except BrokerError:
            self.__dict__.pop("_admin", None)  # it may be lost, see kafka/client.py: the next question gets a new one
            raise
        except KafkaException as error:
            if code_of(error) in unless:
                return None
            raise request_failed(error, doing, self.cluster.bootstrap_servers, right) from error

    def _describe(self, doing: str) -> ClusterMetadata:
        """Return the cluster's brokers and topics."""
        found: ClusterMetadata = self._ask(doing, lambda client, look_s: describe(client, self._admin[1], look_s))
        return found

    def _lanes_of(self, doing: str, topic: str) -> int | None:
        """Return a topic's number of lanes, or None where the cluster shows no such topic."""
        asked = TopicCollection([topic])
        found = self._ask(
            doing,
            lambda client, look_s: client.describe_topics(asked, request_timeout=look_s)[topic].result(),
            right=Right("Describe", "topic", topic),
            unless=NO_LANE,
        )
        return None if found is None else len(found.partitions)

    def _wait_until(self, doing: str, look: Callable[[], T]) -> T:
        """Return the first true answer of ``look``: what the controller has done, brokers show a moment later."""
        began = time.monotonic()
        while not (answer := look()):
            if time.monotonic() - began > SHOWN_S:
                raise BrokerError(
                    f"{doing}: done, but not shown by Kafka at {self.cluster.bootstrap_servers} after {SHOWN_S:.0f} s",
                    hint="is one of its brokers out of step? see featurectl broker logs",
                )
            self._admin[0].poll(0.02)
        return answer
