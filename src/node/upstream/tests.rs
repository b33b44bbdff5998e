use super::*;

fn seen(receiver: Option<i32>) -> Seen {
    Seen { follows: true, receiver, connecting: false, replayed: Some("0/1".to_owned()) }
}

fn said(count: u64, by_receiver: Option<Suspicion>) -> Said {
    Said { count, by_receiver, unreadable: false }
}

const NOTHING: Said = Said { count: 0, by_receiver: None, unreadable: false };

#[test]
fn one_that_receives_is_well_when_the_same_process_is_seen_again() {
    let (mut trouble, now) = (Trouble::default(), Instant::now());
    assert_eq!(trouble.judge(seen(Some(1)), NOTHING, now), Found::Unclear);
    assert_eq!(trouble.judge(seen(Some(1)), NOTHING, now), Found::Well);
    assert_eq!(trouble.judge(seen(Some(2)), NOTHING, now), Found::Unclear);
    assert_eq!(trouble.judge(seen(Some(2)), NOTHING, now), Found::Well);
}

#[test]
fn the_log_alone_means_nothing_and_with_the_view_at_once() {
    let (mut trouble, now) = (Trouble::default(), Instant::now());
    trouble.judge(seen(Some(1)), NOTHING, now);
    let gives_up = said(1, Some(Suspicion::Receiving));
    // The process that has said so may still be there.
    assert_eq!(trouble.judge(seen(Some(1)), gives_up, now), Found::Unclear);
    assert_eq!(trouble.judge(seen(None), gives_up, now), Found::Suspected(Suspicion::Receiving));
    // Or it was somebody else.
    let mut trouble = Trouble::default();
    trouble.judge(seen(Some(1)), NOTHING, now);
    assert_eq!(trouble.judge(seen(Some(1)), gives_up, now), Found::Unclear);
    assert_eq!(trouble.judge(seen(Some(1)), gives_up, now), Found::Well);
}

#[test]
fn without_words_patience_ends() {
    let begin = Instant::now();
    let late = begin + limits::UPSTREAM_PATIENCE;
    let unreadable = Said { unreadable: true, ..NOTHING };
    for (connecting, heard, expected) in [
        (true, NOTHING, Suspicion::Silent),
        (true, unreadable, Suspicion::Silent),
        (false, unreadable, Suspicion::Malformed),
        (false, NOTHING, Suspicion::Receiving),
    ] {
        let look = || Seen { connecting, ..seen(None) };
        let mut trouble = Trouble::default();
        assert_eq!(trouble.judge(look(), heard, begin), Found::Waiting);
        assert_eq!(trouble.judge(look(), heard, late), Found::Suspected(expected));
        trouble.hinted();
        assert_eq!(trouble.judge(look(), heard, late), Found::Waiting, "patience begins anew");
    }
}

#[test]
fn processes_that_come_and_go_are_no_end_of_the_trouble() {
    let begin = Instant::now();
    let mut trouble = Trouble::default();
    let unreadable = Said { unreadable: true, ..NOTHING };
    assert_eq!(trouble.judge(seen(None), unreadable, begin), Found::Waiting);
    assert_eq!(trouble.judge(seen(Some(1)), unreadable, begin), Found::Unclear);
    let late = begin + limits::UPSTREAM_PATIENCE;
    assert_eq!(trouble.judge(seen(Some(2)), unreadable, late), Found::Unclear);
    assert_eq!(trouble.judge(seen(None), unreadable, late), Found::Suspected(Suspicion::Malformed));
}

#[test]
fn one_that_gets_on_without_receiving_is_left_alone() {
    let begin = Instant::now();
    let mut trouble = Trouble::default();
    for (step, replayed) in ["0/1", "0/2", "0/3"].into_iter().enumerate() {
        let look = Seen { replayed: Some(replayed.to_owned()), ..seen(None) };
        let now = begin + limits::UPSTREAM_PATIENCE * u32::try_from(step).unwrap();
        assert_eq!(trouble.judge(look, NOTHING, now), Found::Waiting);
    }
}

#[test]
fn who_follows_nobody_is_not_judged() {
    let begin = Instant::now();
    let mut trouble = Trouble::default();
    trouble.judge(seen(None), NOTHING, begin);
    let late = begin + limits::UPSTREAM_PATIENCE;
    let paused = Seen { follows: false, ..seen(None) };
    assert_eq!(trouble.judge(paused, said(1, Some(Suspicion::Refused)), late), Found::NotFollowing);
    assert_eq!(trouble.judge(seen(None), said(1, None), late), Found::Waiting);
}

#[test]
fn hints_become_rare_and_after_a_while_of_calm_prompt_again() {
    let begin = Instant::now();
    let mut limiter = Limiter::default();
    assert!(limiter.allows(begin));
    let mut now = begin;
    let mut pauses = Vec::new();
    for round in 0..12 {
        limiter.hinted(now, if round % 2 == 0 { 0 } else { u32::MAX });
        assert!(!limiter.allows(now));
        let next = limiter.next.unwrap();
        assert!(limiter.allows(next));
        pauses.push(limiter.pause);
        now = next;
    }
    assert!(pauses.is_sorted() && pauses[0] == limits::UPSTREAM_HINT_PAUSE);
    assert_eq!(pauses.last(), Some(&limits::UPSTREAM_HINT_PAUSE_MAX));
    limiter.hinted(now + 3 * limits::UPSTREAM_HINT_PAUSE_MAX, 0);
    assert_eq!(limiter.pause, limits::UPSTREAM_HINT_PAUSE);
}

#[test]
fn it_is_quiet_as_long_as_anybody_wants() {
    let upstream = Upstream::default();
    let (one, other) = (upstream.quiet(), upstream.clone().quiet());
    drop(one);
    assert!(upstream.is_quiet());
    drop(other);
    assert!(!upstream.is_quiet());
}
