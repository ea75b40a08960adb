//! A disk that keeps what it promised to keep, and of the rest what chance says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::random::Random;
use crate::recording::Step;

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is all there: the process was killed, the machine was not.
    Nothing,
    Everything,
    /// Each write is cut at some byte.
    Torn,
    /// Some writes are there, also such as came after others that are not.
    Some,
    /// Files are as long as they should be and hold zeros.
    Zeroed,
    /// Files are as long as they should be and hold what lay there before.
    Noise,
}

impl Loss {
    /// What a power cut may do.
    pub(crate) const POWER: [Self; 5] = [Self::Everything, Self::Torn, Self::Some, Self::Zeroed, Self::Noise];
}

/// All files and directories below one, by path; a directory is none.
pub(crate) type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// A name made, changed or removed. Names of one directory become durable in order.
struct Naming<'a> {
    step: &'a Step,
    file: usize,
    durable: bool,
}

/// A change of what a file holds: its new length, or bytes at an offset.
struct Change<'a> {
    step: usize,
    offset: u64,
    bytes: Option<&'a [u8]>,
    durable: bool,
}

#[derive(Default)]
struct File<'a> {
    content: Vec<u8>,
    length: u64,
    changes: Vec<Change<'a>>,
}

/// The steps of one run up to some place, sorted by what they are about.
struct Disk<'a> {
    files: Vec<File<'a>>,
    /// Which file has this name, after all steps.
    names: HashMap<PathBuf, usize>,
    namings: Vec<(usize, Naming<'a>)>,
}

/// What a disk that held `base` holds after these steps and a crash.
pub(crate) fn after_crash(base: &Tree, steps: &[Step], loss: Loss, random: &mut Random) -> Tree {
    let mut disk = Disk { files: Vec::new(), names: HashMap::new(), namings: Vec::new() };
    for (path, content) in base {
        if let Some(content) = content {
            let length = content.len() as u64;
            disk.names.insert(path.clone(), disk.files.len());
            disk.files.push(File { content: content.clone(), length, changes: Vec::new() });
        }
    }
    let names: BTreeMap<PathBuf, Option<usize>> =
        base.keys().map(|path| (path.clone(), disk.names.get(path).copied())).collect();
    for (place, step) in steps.iter().enumerate() {
        disk.take(place, step);
    }
    let names = disk.names_after(names, loss, random);
    let mut contents: Vec<Vec<u8>> =
        disk.files.into_iter().map(|file| file.after_crash(loss, random)).collect();
    names
        .into_iter()
        .map(|(path, file)| (path, file.map(|file| std::mem::take(&mut contents[file]))))
        .collect()
}

impl<'a> Disk<'a> {
    fn take(&mut self, place: usize, step: &'a Step) {
        match step {
            Step::Create { path } => drop(self.file(place, path, step)),
            Step::MakeDirectory { .. } => self.name(place, usize::MAX, step),
            Step::Rename { from, to } => {
                let file = self.names.get(from).copied().unwrap_or(usize::MAX);
                self.name(place, file, step);
                self.names = std::mem::take(&mut self.names)
                    .into_iter()
                    .filter(|(path, _)| !path.starts_with(to))
                    .map(|(path, file)| (renamed(&path, from, to).unwrap_or(path), file))
                    .collect();
            }
            Step::Remove { path } => {
                self.name(place, usize::MAX, step);
                self.names.remove(path);
            }
            Step::Write { path, offset, bytes } => {
                let file = self.file(place, path, step);
                let offset = offset.unwrap_or(self.files[file].length);
                self.change(place, file, offset, Some(bytes));
            }
            Step::SetLength { path, length } => {
                let file = self.file(place, path, step);
                self.change(place, file, *length, None);
            }
            Step::Sync { path, began } => self.sync(path, *began),
            Step::Acknowledge { .. } | Step::Nothing => {}
        }
    }

    /// The file of this name, made if there is none.
    fn file(&mut self, place: usize, path: &Path, step: &'a Step) -> usize {
        if let Some(file) = self.names.get(path) {
            return *file;
        }
        let file = self.files.len();
        self.files.push(File::default());
        self.names.insert(path.to_owned(), file);
        self.name(place, file, step);
        file
    }

    fn name(&mut self, place: usize, file: usize, step: &'a Step) {
        self.namings.push((place, Naming { step, file, durable: false }));
    }

    fn change(&mut self, step: usize, file: usize, offset: u64, bytes: Option<&'a [u8]>) {
        let file = &mut self.files[file];
        let end = offset + bytes.map_or(0, |bytes| bytes.len() as u64);
        file.length = if bytes.is_none() { offset } else { file.length.max(end) };
        file.changes.push(Change { step, offset, bytes, durable: false });
    }

    fn sync(&mut self, path: &Path, began: usize) {
        if let Some(file) = self.names.get(path) {
            let changes = self.files[*file].changes.iter_mut();
            changes.filter(|change| change.step < began).for_each(|change| change.durable = true);
        }
        let here = |naming: &Naming<'_>| naming.path().parent() == Some(path);
        let namings = self.namings.iter_mut().filter(|(place, naming)| *place < began && here(naming));
        namings.for_each(|(_, naming)| naming.durable = true);
    }

    /// Of each directory the names as they were at some moment since it was synced.
    fn names_after(
        &self,
        mut names: BTreeMap<PathBuf, Option<usize>>,
        loss: Loss,
        random: &mut Random,
    ) -> BTreeMap<PathBuf, Option<usize>> {
        let mut ended = BTreeSet::new();
        for (_, naming) in &self.namings {
            let directory = naming.path().parent().unwrap().to_owned();
            let ends = match loss {
                Loss::Nothing => false,
                Loss::Everything => true,
                Loss::Torn | Loss::Some | Loss::Zeroed | Loss::Noise => random.below(4) == 0,
            };
            if !naming.durable && (ended.contains(&directory) || ends) {
                ended.insert(directory);
            } else {
                naming.apply(&mut names);
            }
        }
        // What lies in a directory that is not there is not there either.
        let directories: BTreeSet<PathBuf> =
            names.iter().filter(|(_, file)| file.is_none()).map(|(path, _)| path.clone()).collect();
        let is_there = |path: &Path| path.parent().is_none_or(|at| at == "" || directories.contains(at));
        names.retain(|path, _| path.ancestors().filter(|path| *path != "").all(is_there));
        names
    }
}

impl Naming<'_> {
    fn path(&self) -> &Path {
        match self.step {
            Step::Rename { to: path, .. }
            | Step::Create { path }
            | Step::MakeDirectory { path }
            | Step::Remove { path }
            | Step::Write { path, .. }
            | Step::SetLength { path, .. }
            | Step::Sync { path, .. } => path,
            Step::Acknowledge { .. } | Step::Nothing => unreachable!("it names nothing"),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Option<usize>>) {
        match self.step {
            Step::Rename { from, to } => {
                let moved: Vec<PathBuf> =
                    names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                names.retain(|path, _| !path.starts_with(to));
                for path in moved {
                    let file = names.remove(&path).unwrap();
                    names.insert(renamed(&path, from, to).unwrap(), file);
                }
            }
            Step::MakeDirectory { path } => drop(names.insert(path.clone(), None)),
            Step::Remove { path } => drop(names.remove(path)),
            Step::Create { path } | Step::Write { path, .. } | Step::SetLength { path, .. } => {
                names.insert(path.clone(), Some(self.file));
            }
            Step::Sync { .. } | Step::Acknowledge { .. } | Step::Nothing => {}
        }
    }
}

fn renamed(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    Some(if rest == "" { to.to_owned() } else { to.join(rest) })
}

impl File<'_> {
    fn after_crash(self, loss: Loss, random: &mut Random) -> Vec<u8> {
        let mut content = self.content;
        for Change { offset, bytes, durable, .. } in self.changes {
            let offset = usize::try_from(offset).unwrap();
            let whole = durable || loss == Loss::Nothing || (loss == Loss::Some && random.coin());
            let Some(bytes) = bytes else {
                if whole || loss == Loss::Zeroed {
                    content.resize(offset, 0);
                }
                continue;
            };
            let kept = match loss {
                _ if whole => bytes.to_vec(),
                Loss::Torn => bytes[..random.place(bytes.len())].to_vec(),
                Loss::Zeroed => vec![0; bytes.len()],
                Loss::Noise => random.bytes(bytes.len()),
                Loss::Nothing | Loss::Everything | Loss::Some => continue,
            };
            content.resize(content.len().max(offset + kept.len()), 0);
            content[offset..offset + kept.len()].copy_from_slice(&kept);
        }
        content
    }
}

/// What is below a directory.
pub(crate) fn tree(directory: &Path) -> Tree {
    let mut tree = Tree::new();
    collect(directory, directory, &mut tree);
    tree
}

fn collect(root: &Path, directory: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_owned();
        if path.is_dir() {
            tree.insert(name, None);
            collect(root, &path, tree);
        } else {
            tree.insert(name, Some(fs::read(&path).unwrap()));
        }
    }
}

/// Puts a tree into a directory, which is empty.
pub(crate) fn plant(tree: &Tree, directory: &Path) {
    for (path, content) in tree {
        let path = directory.join(path);
        match content {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::create_dir(path).unwrap(),
        }
    }
}
