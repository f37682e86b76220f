"""What every Log promises of topics and groups. Subclasses give the fixtures ``log`` and ``name`` (unique)."""

from __future__ import annotations

import pytest

from featurestream.errors import StreamMismatchError, StreamNotFoundError, UsageError

SETTINGS = {"cleanup.policy": "delete", "retention.ms": "3600000", "message.timestamp.type": "LogAppendTime"}


class LogContract:
    def test_a_new_topic_is_listed_with_its_lanes(self, log, name):
        assert name not in log.topics()
        log.create_topic(name, 3, SETTINGS)
        assert log.topics()[name] == 3

    def test_a_new_topic_can_be_written_and_read_at_once(self, log, name):
        log.create_topic(name, 2, SETTINGS)
        sink, source = log.sink(), log.source()
        assert source.bounds(name, 1) == (0, 0)
        sink.append(name, 1, key=b"k", value=b"v")
        sink.flush()
        assert source.record_at(name, 1, 0).value == b"v"
        sink.close()
        source.close()

    def test_creating_a_topic_again_leaves_it_as_it_is(self, log, name):
        log.create_topic(name, 2, SETTINGS)
        sink, source = log.sink(), log.source()
        sink.append(name, 0, key=b"k", value=b"v")
        sink.flush()
        log.create_topic(name, 2, SETTINGS)
        assert source.bounds(name, 0) == (0, 1)
        sink.close()
        source.close()

    def test_a_topic_with_another_number_of_lanes_is_refused_with_both(self, log, name):
        log.create_topic(name, 2, SETTINGS)
        with pytest.raises(StreamMismatchError, match=f'"{name}" exists with 2 lanes, not 3') as error:
            log.create_topic(name, 3, SETTINGS)
        assert error.value.differences == {"lanes": (2, 3)}
        assert log.topics()[name] == 2

    @pytest.mark.parametrize("lanes", [0, -1])
    def test_a_topic_has_a_lane(self, log, name, lanes):
        with pytest.raises(UsageError, match=f"at least one lane, got {lanes}"):
            log.create_topic(name, lanes, SETTINGS)
        assert name not in log.topics()

    def test_a_deleted_topic_is_gone_and_its_name_is_free(self, log, name):
        log.create_topic(name, 2, SETTINGS)
        log.create_topic(name + "-b", 1, SETTINGS)
        log.delete_topics([name, name + "-b"])
        assert not {name, name + "-b"} & set(log.topics())
        log.create_topic(name, 3, SETTINGS)
        assert log.topics()[name] == 3

    def test_deleting_what_is_not_there_is_no_error(self, log, name):
        log.delete_topics([name])
        log.delete_topics([])

    def test_committed_positions_are_shown_under_their_group(self, log, name):
        log.create_topic(name, 3, SETTINGS)
        log.commit_positions(f"featurestream.{name}.one", {(name, 0): 4, (name, 2): 7})
        log.commit_positions(f"featurestream.{name}.two", {(name, 1): 0})
        log.commit_positions(f"featurestream.{name}.one", {(name, 2): 9})
        found = log.committed_positions()
        assert found[f"featurestream.{name}.one"] == {(name, 0): 4, (name, 2): 9}
        assert found[f"featurestream.{name}.two"] == {(name, 1): 0}

    def test_a_note_stands_beside_a_committed_position_until_the_next_one(self, log, name):
        log.create_topic(name, 2, SETTINGS)
        log.commit_positions(f"featurestream.{name}.one", {(name, 0): 4, (name, 1): 7}, "reading")
        log.commit_positions(f"featurestream.{name}.two", {(name, 1): 0})
        prefix = f"featurestream.{name}."
        assert log.committed_notes(prefix) == {f"{prefix}one": {"reading"}, f"{prefix}two": set()}
        log.commit_positions(f"featurestream.{name}.one", {(name, 1): 8}, "done")
        assert log.committed_notes(f"{prefix}o") == {f"{prefix}one": {"reading", "done"}}

    def test_a_topic_has_the_settings_that_it_was_created_with(self, log, name):
        log.create_topic(name, 1, SETTINGS | {"retention.ms": "1234567"})
        assert log.settings(name)["retention.ms"] == "1234567"
        with pytest.raises(StreamNotFoundError):
            log.settings(f"{name}-other")

    def test_groups_of_other_programs_are_not_ours(self, log, name):
        log.create_topic(name, 1, SETTINGS)
        log.commit_positions(f"other.{name}", {(name, 0): 1})
        assert f"other.{name}" not in log.committed_positions()

    def test_positions_of_a_topic_that_is_not_there_cannot_be_committed(self, log, name):
        with pytest.raises(StreamNotFoundError, match=f'"{name}" with a lane 0'):
            log.commit_positions(f"featurestream.{name}.one", {(name, 0): 1})

    def test_committing_nothing_is_no_error(self, log, name):
        log.commit_positions(f"featurestream.{name}.one", {})
        assert f"featurestream.{name}.one" not in log.committed_positions()
